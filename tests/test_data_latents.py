"""Latents on disk stand for the videos: same clips, same order, and never another autoencoder's."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from magi.config import DataConfig
from magi.data.clips import ClipDataset
from magi.data.digits import write_digits
from magi.data.index import VideoIndex, build_index
from magi.data.latents import HEADER_NAME, LatentDataset, is_latents, write_latents
from magi.errors import DataError

CONFIG = DataConfig(frames=4, height=32, width=32, interval_min=1, interval_max=9)


def encode(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """Every latent is an 8 x 8 block's mean: it tells which frame of which video it was made of."""
    pixels_BTCHW = video_BTHWC.permute(0, 1, 4, 2, 3).float() / 64
    return torch.nn.functional.avg_pool2d(pixels_BTCHW.flatten(0, 1), 8).unflatten(0, pixels_BTCHW.shape[:2])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    root = tmp_path_factory.mktemp("videos")
    write_digits(root, clips=5, frames=30)
    write_digits(root / "0" / "short", clips=1, frames=3)
    return build_index(root)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_clips_from_latents_are_those_from_videos(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path / "out", CONFIG, encode, "mean-1", frames_per_batch=7, videos_per_shard=2)
    raw, latents = ClipDataset(index, CONFIG, seed=3), LatentDataset(tmp_path / "out", CONFIG, seed=3, vae_id="mean-1")
    assert (len(latents), latents.too_short) == (len(raw), raw.too_short) == (5, 1)
    intervals = set()
    for sample in range(40):
        clip, latent = raw[sample], latents[sample]
        expected_TCHW = encode(torch.from_numpy(clip.video_THWC)[None])[0].numpy()
        assert latent.latents_TCHW.dtype == np.float32
        assert np.abs(latent.latents_TCHW - expected_TCHW).max() < 2e-3
        assert (latent.interval, latent.label, latent.sample) == (clip.interval, clip.label, sample)
        intervals.add(clip.interval)
    assert len(intervals) > 5
    assert latents.classes == index.classes and latents.latent_shape.model_dump() == {
        "frames": 4,
        "channels": 3,
        "height": 4,
        "width": 4,
    }


def test_videos_of_other_sizes_go_through_the_resize_rule_of_clips(index: VideoIndex, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"height": 48, "width": 24})
    write_latents(index, tmp_path, config, encode, "mean-1")
    clip, latent = ClipDataset(index, config, 0)[8], LatentDataset(tmp_path, config, 0, "mean-1")[8]
    assert latent.latents_TCHW.shape == (4, 3, 6, 3)
    assert np.abs(latent.latents_TCHW - encode(torch.from_numpy(clip.video_THWC)[None])[0].numpy()).max() < 2e-3


def test_two_workers_write_what_one_writes(index: VideoIndex, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_latents(index, one, CONFIG, encode, "mean-1", videos_per_shard=2)
    assert write_latents(index, two, CONFIG, encode, "mean-1", videos_per_shard=2, worker=(1, 2)) == 1
    with pytest.raises(DataError, match=r"2 of 3 shards missing, first shard-00000\.safetensors"):
        LatentDataset(two, CONFIG, 0, "mean-1")
    assert write_latents(index, two, CONFIG, encode, "mean-1", videos_per_shard=2, worker=(0, 2)) == 2
    assert names(one) == names(two) and len(names(one)) == 7
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names(one))


def test_stopped_encoding_continues_without_doing_anything_twice(index: VideoIndex, tmp_path: Path) -> None:
    calls = 0

    def stops(video_BTHWC: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(video_BTHWC)

    with pytest.raises(KeyboardInterrupt):
        write_latents(index, tmp_path, CONFIG, stops, "mean-1", videos_per_shard=2)
    assert names(tmp_path) == [HEADER_NAME, "shard-00000.jsonl", "shard-00000.safetensors"]
    first = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    again = write_latents(
        index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=2, progress=lambda *done: seen.append(done)
    )
    assert again == 2 and seen[-1] == (6, 6) and seen == sorted(seen)
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == first


@pytest.mark.parametrize("damage", ["truncate", "delete", "unlisted"])
def test_damaged_shard_is_encoded_again(index: VideoIndex, tmp_path: Path, damage: str) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=3)
    path = tmp_path / "shard-00001.safetensors"
    whole = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(whole[:-100])
    elif damage == "delete":
        path.unlink()
    else:
        path.with_suffix(".jsonl").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.safetensors.*run 'magi encode' again"):
        dataset = LatentDataset(tmp_path, CONFIG, 0, "mean-1")
        for sample in range(5):
            dataset[sample]
    assert write_latents(index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=3) == 1
    assert path.read_bytes() == whole


def test_latents_of_another_autoencoder_or_size_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=2)
    with pytest.raises(ValueError, match=r"made by autoencoder mean-1, not mean-2"):
        LatentDataset(tmp_path, CONFIG, 0, "mean-2")
    with pytest.raises(ValueError, match=r"of 32x32 frames, data has 64x32"):
        LatentDataset(tmp_path, CONFIG.model_copy(update={"height": 64}), 0, "mean-1")


def test_folder_of_other_settings_is_never_written_to(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=2)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(ValueError, match=r"these latents have vae mean-1, asked mean-2; choose another folder"):
        write_latents(index, tmp_path, CONFIG, encode, "mean-2", videos_per_shard=2)
    with pytest.raises(ValueError, match=r"have width 32, asked 64"):
        write_latents(index, tmp_path, CONFIG.model_copy(update={"width": 64}), encode, "mean-1", videos_per_shard=2)
    renamed = replace(index, videos=(replace(index.videos[0], path="0/other.mp4"), *index.videos[1:]))
    with pytest.raises(ValueError, match=r"have another list of videos"):
        write_latents(renamed, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=2)
    assert before == {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}


def test_shard_that_strayed_in_from_another_folder_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    for vae in ("mean-1", "mean-2"):
        write_latents(index, tmp_path / vae, CONFIG, encode, vae)
    (tmp_path / "mean-2" / "shard-00000.safetensors").replace(tmp_path / "mean-1" / "shard-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: belongs to other settings"):
        write_latents(index, tmp_path / "mean-1", CONFIG, encode, "mean-1")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: belongs to other settings"):
        LatentDataset(tmp_path / "mean-1", CONFIG, 0, "mean-1")[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_are_not_finite_name_the_video(index: VideoIndex, tmp_path: Path, value: float) -> None:
    seen = 0

    def spoils(video_BTHWC: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        latents_BTCHW = encode(video_BTHWC)
        if seen == 3:
            latents_BTCHW[0, -1, 0, 0, 0] = value
        return latents_BTCHW

    with pytest.raises(DataError) as error:
        write_latents(index, tmp_path, CONFIG, spoils, "mean-1")
    assert index.videos[2].path in str(error.value) and "not finite" in str(error.value)
    assert names(tmp_path) == [HEADER_NAME]


def test_not_finite_on_disk_names_the_video(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1")
    path, dataset = tmp_path / "shard-00000.safetensors", LatentDataset(tmp_path, CONFIG, 0, "mean-1")
    latents = load_file(path)
    latents["0"][:] = np.nan
    save_file(latents, path, metadata={"settings": dataset.header.digest})
    with pytest.raises(DataError, match=index.videos[0].path):
        fresh = LatentDataset(tmp_path, CONFIG, 0, "mean-1")
        for sample in range(5):
            fresh[sample]


def test_autoencoder_that_changes_the_number_of_frames_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temporal stride 1"):
        write_latents(index, tmp_path, CONFIG, lambda video_BTHWC: encode(video_BTHWC)[:, ::2], "odd-1")


@pytest.mark.parametrize("worker", [(2, 2), (-1, 2), (0, 0)])
def test_impossible_worker_is_refused(index: VideoIndex, tmp_path: Path, worker: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected i/N"):
        write_latents(index, tmp_path, CONFIG, encode, "mean-1", worker=worker)


def test_folders_of_latents_and_of_videos_are_told_apart(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path / "out", CONFIG, encode, "mean-1")
    assert is_latents(tmp_path / "out") and not is_latents(index.root) and not is_latents(tmp_path / "missing")
    with pytest.raises(DataError, match=r"holds no latents; make them with 'magi encode'"):
        LatentDataset(index.root, CONFIG, 0, "mean-1")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is a file, not a folder"):
        write_latents(index, tmp_path / "file", CONFIG, encode, "mean-1")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\x00\xff"])
def test_damaged_header_is_one_line(index: VideoIndex, tmp_path: Path, text: str) -> None:
    (tmp_path / HEADER_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{HEADER_NAME}: damaged or of another version") as error:
        LatentDataset(tmp_path, CONFIG, 0, "mean-1")
    assert "\n" not in str(error.value)


def test_header_of_a_later_format_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1")
    header = json.loads((tmp_path / HEADER_NAME).read_text())
    (tmp_path / HEADER_NAME).write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(DataError, match="format 2 is not 1"):
        LatentDataset(tmp_path, CONFIG, 0, "mean-1")


def test_clip_longer_than_every_video_is_refused_by_length(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1")
    with pytest.raises(DataError, match="longest of 6 videos has 30"):
        LatentDataset(tmp_path, CONFIG.model_copy(update={"frames": 31}), 0, "mean-1")


def test_loader_processes_open_their_own_files(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1", videos_per_shard=2)
    dataset = LatentDataset(tmp_path, CONFIG, 0, "mean-1")
    expected = [dataset[sample].latents_TCHW for sample in range(5)]
    copied = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(copied[sample].latents_TCHW, expected[sample]) for sample in range(5))


def test_line_of_a_shard_says_what_is_in_it(index: VideoIndex, tmp_path: Path) -> None:
    write_latents(index, tmp_path, CONFIG, encode, "mean-1")
    lines = [json.loads(line) for line in (tmp_path / "shard-00000.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [record.path for record in index.videos]
    assert {line["vae"] for line in lines} == {"mean-1"}
    assert [(line["label"], line["frames"]) for line in lines] == [(r.label, r.frames) for r in index.videos]
