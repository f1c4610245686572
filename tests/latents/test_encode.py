"""Encoding can be stopped anywhere and shared out: in the end the same bytes, and never two settings in one folder."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from magi.config import DataConfig
from magi.data.index.index import VideoIndex
from magi.errors import DataError
from magi.latents.files import HEADER_NAME, measured_normalization, read_header, read_shard
from tests.fakes.encoded_videos import (
    CLIPS,
    CONFIG,
    encode,
    encode_clip,
    make_index,
    names,
    same_bytes,
    some_spread,
    write,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize(("config", "how"), [(CONFIG, encode), (CLIPS, encode_clip)])
def test_two_workers_write_what_one_writes(index: VideoIndex, tmp_path: Path, config, how) -> None:  # type: ignore[no-untyped-def]
    one, two = tmp_path / "one", tmp_path / "two"
    write(index, one, config, how)
    assert write(index, two, config, how, worker=(1, 2)) == 1
    assert write(index, two, config, how, worker=(0, 2)) == 2
    assert same_bytes(one, two) and len(names(one)) == 7


def test_stopped_encoding_continues_without_doing_anything_twice(index: VideoIndex, tmp_path: Path) -> None:
    calls = 0

    def stops(video_BTHWC: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(video_BTHWC)

    with pytest.raises(KeyboardInterrupt):
        write(index, tmp_path, encode=stops)
    assert names(tmp_path) == [HEADER_NAME, "shard-00000.jsonl", "shard-00000.safetensors"]
    first = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    assert write(index, tmp_path, on_progress=lambda *done: seen.append(done)) == 2
    assert seen[-1] == (6, 6) and seen == sorted(seen)
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == first


def _killed_at(call: int, index: VideoIndex, out: Path, **settings: int) -> None:
    """Encode in a process of its own, which is killed when the autoencoder is called for the ``call``-th time."""
    child = os.fork()
    if child == 0:
        calls = 0

        def killed(video_BTHWC: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(video_BTHWC)

        with contextlib.suppress(BaseException):
            write(index, out, encode=killed, **settings)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "killed, not finished"


def test_killed_encoding_ends_with_the_same_bytes(index: VideoIndex, tmp_path: Path) -> None:
    """SIGKILL within one shard after another; what is left is continued, and nothing of the kills stays behind."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"videos_per_shard": 1, "frames_per_batch": 8}
    write(index, whole, **settings)
    for call in (1, 3, 5, 7, 2):
        _killed_at(call, index, killed, **settings)
    # What a kill between writing and renaming leaves.
    assert len(names(killed)) < len(names(whole))
    for name in ("shard-00005.safetensors", "shard-00005.jsonl", HEADER_NAME):
        (killed / f".{name}.0badc0de.part").write_bytes(b"half")
    write(index, killed, **settings)
    assert same_bytes(whole, killed)


@pytest.mark.parametrize("damage", ["truncate", "delete", "unlisted", "cut lines"])
def test_damaged_shard_is_encoded_again(index: VideoIndex, tmp_path: Path, damage: str) -> None:
    write(index, tmp_path, videos_per_shard=3)
    path = tmp_path / "shard-00001.safetensors"
    whole, lines = path.read_bytes(), path.with_suffix(".jsonl").read_bytes()
    if damage == "truncate":
        path.write_bytes(whole[:-100])
    elif damage == "delete":
        path.unlink()
    elif damage == "cut lines":
        path.with_suffix(".jsonl").write_bytes(lines[:-30])
    else:
        path.with_suffix(".jsonl").unlink()
    assert write(index, tmp_path, videos_per_shard=3) == 1
    assert path.read_bytes() == whole and path.with_suffix(".jsonl").read_bytes() == lines


def test_folder_of_other_settings_is_never_written_to(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "f")
    write(index, tmp_path / "c", CLIPS, encode_clip)
    before = {path: path.read_bytes() for folder in "fc" for path in (tmp_path / folder).iterdir()}
    renamed = replace(index, videos=(replace(index.videos[0], path="0/other.mp4"), *index.videos[1:]))
    longer = CLIPS.model_copy(update={"frames": 9})
    wider = CONFIG.model_copy(update={"width": 64})
    for attempt, line in (
        (lambda: write(index, tmp_path / "f", id="mean-2"), "have vae mean-1, asked mean-2; choose another folder"),
        (lambda: write(index, tmp_path / "f", wider), "have width 32, asked 64"),
        (lambda: write(index, tmp_path / "f", dtype="float32"), "have dtype float16, asked float32"),
        (lambda: write(renamed, tmp_path / "f"), "have another list of videos"),
        (lambda: write(index, tmp_path / "f", CLIPS, encode_clip), "have latent_frames 0, asked 2"),
        (lambda: write(index, tmp_path / "c", longer, encode_clip), "have latent_frames 2, asked 3"),
        (lambda: write(index, tmp_path / "c", CLIPS, encode_clip, clips_per_video=2), "clips_per_video 3, asked 2"),
        (lambda: write(index, tmp_path / "c", CLIPS, encode_clip, seed=1), "have seed 0, asked 1"),
    ):
        with pytest.raises(ValueError, match=line):
            attempt()
    assert before == {path: path.read_bytes() for folder in "fc" for path in (tmp_path / folder).iterdir()}


def test_shard_of_another_folder_is_never_overwritten(index: VideoIndex, tmp_path: Path) -> None:
    for vae in ("mean-1", "mean-2"):
        write(index, tmp_path / vae, id=vae)
    (tmp_path / "mean-2" / "shard-00000.safetensors").replace(tmp_path / "mean-1" / "shard-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: belongs to other settings"):
        write(index, tmp_path / "mean-1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("where", ["mean", "std"])
def test_latents_that_are_not_finite_name_the_video(
    index: VideoIndex, tmp_path: Path, value: float, where: str
) -> None:
    seen = 0

    def spoil(latents_BTCHW: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        latents_BTCHW = latents_BTCHW.clone()
        if seen == 3:
            latents_BTCHW[0, -1, 0, 0, 0] = value
        return latents_BTCHW

    with pytest.raises(DataError) as error:
        if where == "mean":
            write(index, tmp_path, encode=lambda video_BTHWC: spoil(encode(video_BTHWC)), videos_per_shard=6)
        else:
            write(index, tmp_path, spread=spoil, videos_per_shard=6)
    assert index.videos[2].path in str(error.value) and "not finite" in str(error.value)
    assert names(tmp_path) == [HEADER_NAME]


def test_autoencoder_that_changes_the_number_of_frames_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made .* of 30 frames; expected .* temporal stride 1"):
        write(index, tmp_path, encode=lambda video_BTHWC: encode(video_BTHWC)[:, ::2])


@pytest.mark.parametrize("worker", [(2, 2), (-1, 2), (0, 0)])
def test_impossible_worker_is_refused(index: VideoIndex, tmp_path: Path, worker: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected i/N"):
        write(index, tmp_path, worker=worker)


@pytest.mark.parametrize("settings", [{"frames_per_batch": 0}, {"clips_per_video": 0}, {"dtype": "float8"}])
def test_impossible_settings_are_refused(index: VideoIndex, tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be positive and dtype"):
        write(index, tmp_path, **settings)  # type: ignore[arg-type]


def test_a_file_where_the_folder_should_be_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is a file, not a folder"):
        write(index, tmp_path / "file")


def test_video_that_has_changed_since_it_was_indexed_is_named(index: VideoIndex, tmp_path: Path) -> None:
    gone = replace(index.videos[3], path="0/gone.mp4")
    with pytest.raises(DataError, match=r"0/gone\.mp4: is gone or empty since it was indexed"):
        write(replace(index, videos=(*index.videos[:3], gone)), tmp_path)


def test_line_of_a_shard_says_what_is_in_it(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path, videos_per_shard=6)
    head, *lines = [json.loads(line) for line in (tmp_path / "shard-00000.jsonl").read_text().splitlines()]
    assert head["bytes"] == (tmp_path / "shard-00000.safetensors").stat().st_size
    assert [(line["path"], line["label"], line["frames"]) for line in lines] == [
        (record.path, record.label, record.frames) for record in index.videos
    ]


def test_standard_deviation_is_written_only_where_there_is_one(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "none", videos_per_shard=6)
    write(index, tmp_path / "some", spread=some_spread, videos_per_shard=6)
    assert set(load_file(tmp_path / "none" / "shard-00000.safetensors")) == {"mean"}
    tensors = load_file(tmp_path / "some" / "shard-00000.safetensors")
    assert tensors["std"].shape == tensors["mean"].shape == (5 * 30 + 3, 3, 4, 4)


@pytest.mark.parametrize(("config", "how"), [(CONFIG, encode), (CLIPS, encode_clip)])
def test_statistics_are_those_of_all_latents_as_they_are_drawn(
    index: VideoIndex, tmp_path: Path, config: DataConfig, how: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Over every latent of every shard: the variance of the means, and the mean of the variances around them."""
    write(index, tmp_path, config, how, spread=some_spread, dtype="float32")
    shards = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    mean_CN, std_CN = (
        np.concatenate([shard[name] for shard in shards]).swapaxes(0, 1).reshape(3, -1) for name in ("mean", "std")
    )
    header = read_header(tmp_path)
    found = measured_normalization(header, [read_shard(tmp_path, n, header) for n in range(header.shards)])
    assert found.mean == pytest.approx(mean_CN.mean(1), rel=1e-5)
    assert found.std == pytest.approx(np.sqrt(mean_CN.var(1) + np.square(std_CN).mean(1)), rel=1e-5)
    assert found.weights == header.vae and "measured while 5 videos" in found.source.replace("6 videos", "5 videos")


def test_clips_are_chosen_by_seed_and_video_alone(index: VideoIndex, tmp_path: Path) -> None:
    """The same clips whatever the shards; another seed chooses others; a video that is too short has none."""

    def chosen(out: Path) -> list[list[list[int]]]:
        paths = sorted(out.glob("*.jsonl"))
        return [json.loads(line)["clips"] for path in paths for line in path.read_text().splitlines()[1:]]

    for name, settings in (("a", {}), ("b", {"videos_per_shard": 5}), ("c", {"seed": 1})):
        write(index, tmp_path / name, CLIPS, encode_clip, **settings)
    a, b, c = (chosen(tmp_path / name) for name in "abc")
    assert a == b != c and sorted(map(len, a)) == [0, 3, 3, 3, 3, 3]
