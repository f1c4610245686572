"""Encoded latents carry the captions of their videos; changed captions encode nothing again, older folders are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from magi.config import ModelConfig, TrainingConfig
from magi.data.caption_table import CaptionTable
from magi.data.clips import ClipDataset
from magi.data.index.index import VideoIndex
from magi.errors import DataError
from magi.latents.dataset import LatentClip, LatentDataset
from magi.latents.files import HEADER_NAME
from magi.training.batch import data_identity, make_batch
from magi.training.corruption import TokenShape, draw_corruption
from tests.fakes.encoded_videos import CLIPS, CONFIG, encode, encode_clip, in_raw_units, make_index, write

CAPTIONS = ["zero", None, "two", "drei 🐻", "four", "short"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


def opened(folder: Path, captioned: bool = True, config=CONFIG) -> LatentDataset:  # type: ignore[no-untyped-def]
    return LatentDataset(folder, config, 0, "mean-1", in_raw_units(folder), captioned)


@pytest.mark.parametrize(("config", "how"), [(CONFIG, encode), (CLIPS, encode_clip)])
def test_clips_of_latents_have_the_captions_of_their_videos(index: VideoIndex, tmp_path: Path, config, how) -> None:  # type: ignore[no-untyped-def]
    table = CaptionTable.of(CAPTIONS)
    write(index, tmp_path, config, how, captions=table)
    latents = opened(tmp_path, config=config)
    for sample in range(12):
        assert latents[sample].caption == CAPTIONS[latents.draws.draw(sample).video]
    assert latents.captions is not None and latents.captions.digest == table.digest
    assert opened(tmp_path, False, config)[0].caption is None
    if config is CONFIG:
        videos = ClipDataset(index, CONFIG, 0, captions=table)
        assert [videos[sample].caption for sample in range(12)] == [latents[sample].caption for sample in range(12)]


def test_changed_captions_encode_nothing_again(index: VideoIndex, tmp_path: Path) -> None:
    def never(video_BTHWC: torch.Tensor) -> torch.Tensor:
        raise AssertionError("encoded again")

    write(index, tmp_path)
    assert opened(tmp_path).captions.count == 0  # type: ignore[union-attr]
    plain = data_identity(opened(tmp_path, False))
    tensors = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    for captions in (CAPTIONS, CAPTIONS[::-1]):
        assert write(index, tmp_path, encode=never, captions=CaptionTable.of(captions)) == 0
        latents = opened(tmp_path)
        assert [latents.captions[video] for video in range(6)] == captions  # type: ignore[index]
    assert tensors == {path: path.stat().st_mtime_ns for path in tensors}
    lines = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.jsonl")}
    write(index, tmp_path, encode=never, captions=CaptionTable.of(CAPTIONS[::-1]))
    assert lines == {path: path.stat().st_mtime_ns for path in lines}, "what has not changed is not written"
    identities = {data_identity(opened(tmp_path)), data_identity(opened(tmp_path, False))}
    assert len(identities) == 2 and plain in identities, "a run without text does not care"


def test_a_folder_of_the_last_format_is_read_and_gets_captions(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path)
    header = json.loads((tmp_path / HEADER_NAME).read_text())
    (tmp_path / HEADER_NAME).write_text(json.dumps(header | {"format": 4}))
    for path in tmp_path.glob("shard-*"):
        path.unlink()
    write(index, tmp_path)
    for path in tmp_path.glob("*.jsonl"):  # as that format wrote them
        head, *lines = path.read_text().splitlines()
        older = [json.dumps({k: v for k, v in json.loads(line).items() if k != "caption"}) for line in lines]
        path.write_text("\n".join([head, *older]) + "\n")
    assert opened(tmp_path)[0].caption is None
    assert write(index, tmp_path, captions=CaptionTable.of(CAPTIONS)) == 0
    assert opened(tmp_path).captions.count == 5  # type: ignore[union-attr]
    (tmp_path / HEADER_NAME).write_text(json.dumps(header | {"format": 3}))
    with pytest.raises(DataError, match="format 3 is not 5"):
        opened(tmp_path)


def test_a_caption_that_is_no_text_is_damage(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path, captions=CaptionTable.of(CAPTIONS))
    path = tmp_path / "shard-00000.jsonl"
    path.write_text(path.read_text().replace('"zero"', "7"))
    with pytest.raises(DataError, match="a caption is no text"):
        opened(tmp_path)


# Batches

SHAPE = TokenShape(5, 4, 8)


def clip_of(caption: str | None, text_LE: np.ndarray | None = None) -> LatentClip:
    return LatentClip(np.zeros((5, 2, 4, 4), np.float32), 1, None, 0, caption=caption, text_LE=text_LE)


def test_a_batch_has_its_clips_captions_and_leaves_them_out_by_clip() -> None:
    model = ModelConfig(width=8, heads=2, frames=5, text_encoder="bytes", text_length=4)
    dropped = []
    for sample in range(200):
        corruptions = [draw_corruption(TrainingConfig(), model, SHAPE, number) for number in (sample, 7)]
        batch = make_batch([clip_of("ab"), clip_of("longer" if not sample else None)], corruptions, model)
        one, other = batch.conditions.text_BLE[..., 0].tolist()  # type: ignore[index]
        dropped.append(corruptions[0].drop_text)
        assert one[:2] == ([98, 99] if not dropped[-1] and len(one) > 1 else [0, 0][: len(one)])
        assert other == ([109, 112, 111, 104] if not sample else [0] * len(other)), "cut to what the model reads"
    assert 8 <= sum(dropped) <= 35


def test_states_of_a_frozen_encoder_are_stacked_with_zeros_behind() -> None:
    model = ModelConfig(width=8, heads=2, frames=5, text_encoder="frozen", text_width=3)
    corruption = draw_corruption(TrainingConfig(text_dropout=0), model, SHAPE, 0)
    states = [np.ones((2, 3), np.float16), np.zeros((0, 3), np.float16)]
    clips = [clip_of(None, text_LE) for text_LE in states]
    text_BLE = make_batch(clips, [corruption] * 2, model).conditions.text_BLE
    assert text_BLE.tolist() == [[[1] * 3] * 2, [[0] * 3] * 2] and text_BLE.dtype == torch.float32  # type: ignore[union-attr]
    for text_LE, found in ((None, "none"), (np.ones((2, 5), np.float16), "of 5 numbers")):
        with pytest.raises(ValueError, match=f"model.text_width is 3, but the states of a clip's caption are {found}"):
            make_batch([clip_of("a", text_LE)], [corruption], model)
