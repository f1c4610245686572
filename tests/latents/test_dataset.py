"""Latents on disk stand for the videos: same clips, same order, and never another autoencoder's."""

import json
import os
import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from magi.config import DataConfig
from magi.data.clips import ClipDataset, clip_span, read_clip
from magi.data.index.index import VideoIndex
from magi.errors import DataError
from magi.latents.dataset import LatentDataset, is_latents
from magi.latents.files import HEADER_NAME, read_header
from magi.seeding import posterior_noise
from tests.fakes.encoded_videos import CLIPS, CONFIG, encode, encode_clip, in_raw_units, make_index, some_spread, write


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return make_index(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def by_clips(index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of an autoencoder that mixes frames, of three clips a video."""
    out = tmp_path_factory.mktemp("clips") / "out"
    write(index, out, CLIPS, encode_clip, spread=some_spread)
    return out


def replace(config: DataConfig = CONFIG, **changes: object) -> DataConfig:
    return config.model_copy(update=changes)


def open_latents(folder: Path, config: DataConfig = CONFIG, seed: int = 0) -> LatentDataset:
    return LatentDataset(folder, config, seed, "mean-1", in_raw_units(folder) if is_latents(folder) else None)


def test_clips_from_latents_are_those_from_videos(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "out", frames_per_batch=7)
    raw, latents = ClipDataset(index, CONFIG, seed=3), open_latents(tmp_path / "out", seed=3)
    assert (len(latents), latents.too_short) == (len(raw), raw.too_short) == (5, 1)
    intervals = set()
    for sample in range(40):
        clip, latent = raw[sample], latents[sample]
        expected_TCHW = encode(torch.from_numpy(clip.video_THWC)[None])[0].numpy()
        assert latent.latents_TCHW.dtype == np.float32 and latent.latents_TCHW.flags.c_contiguous
        assert np.abs(latent.latents_TCHW - expected_TCHW).max() < 2e-3
        assert (latent.interval, latent.label, latent.sample) == (clip.interval, clip.label, sample)
        intervals.add(clip.interval)
    assert len(intervals) > 5
    shape = {"frames": 4, "channels": 3, "height": 4, "width": 4}
    assert latents.classes == index.classes and latents.latent_shape.model_dump() == shape


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_videos_of_other_sizes_go_through_the_resize_rule_of_clips(
    index: VideoIndex, tmp_path: Path, dtype: str
) -> None:
    config = replace(height=48, width=24)
    write(index, tmp_path, config, dtype=dtype)
    clip, latent = ClipDataset(index, config, 0)[8], open_latents(tmp_path, config)[8]
    assert latent.latents_TCHW.shape == (4, 3, 6, 3)
    error = np.abs(latent.latents_TCHW - encode(torch.from_numpy(clip.video_THWC)[None])[0].numpy()).max()
    assert error < (2e-3 if dtype == "float16" else 1e-9)


@pytest.mark.parametrize("by_frames", [True, False])
def test_latents_are_drawn_from_the_posterior_by_seed_and_sample(
    index: VideoIndex, by_clips: Path, tmp_path: Path, by_frames: bool
) -> None:
    """sample = mean + std * noise, where noise is the function of (seed, sample) that raw videos are encoded with."""
    folder, config = (tmp_path, CONFIG) if by_frames else (by_clips, CLIPS)
    if by_frames:
        write(index, tmp_path, spread=some_spread)
    drawn, mean = open_latents(folder, config, 3), open_latents(folder, replace(config, sample_posterior=False), 3)
    for sample in range(8):
        mean_TCHW = torch.from_numpy(mean[sample].latents_TCHW)
        noise_TCHW = posterior_noise(tuple(mean_TCHW.shape), 3, sample)
        expected_TCHW = mean_TCHW + some_spread(mean_TCHW) * noise_TCHW
        assert (torch.from_numpy(drawn[sample].latents_TCHW) - expected_TCHW).abs().max() < 5e-3
        assert np.array_equal(drawn[sample].latents_TCHW, drawn[sample].latents_TCHW)
    noise = [posterior_noise((5000,), seed, sample) for seed, sample in ((0, 0), (0, 1), (1, 0))]
    assert all(abs(float(n.mean())) < 0.06 and abs(float(n.std()) - 1) < 0.05 for n in noise)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.06 and abs(float((noise[0] * noise[2]).mean())) < 0.06


def test_recorded_clips_are_those_of_the_videos(index: VideoIndex, by_clips: Path) -> None:
    """Each clip is the latents of the frames that its line names, with its interval and its video's label."""
    dataset = open_latents(by_clips, replace(CLIPS, sample_posterior=False))
    lines = [
        json.loads(line)
        for path in sorted(by_clips.glob("*.jsonl"))
        for line in path.read_text().splitlines()
        if "path" in line
    ]
    assert dataset.too_short == 1 and len(dataset) == 5 and dataset.latent_shape.frames == 2
    for sample in range(15):
        draw, latent = dataset.draws.draw(sample), dataset[sample]
        start, interval = lines[draw.video]["clips"][draw.start // 2]
        assert start + clip_span(5, interval) <= index.videos[draw.video].frames
        clip = read_clip(index, draw.video, start, 5, interval, CLIPS)
        expected_TCHW = encode_clip(torch.from_numpy(clip.video_THWC)[None])[0].numpy()
        assert np.abs(latent.latents_TCHW - expected_TCHW).max() < 2e-3
        assert (latent.interval, latent.label, latent.sample) == (interval, clip.label, sample)
    recorded = list(chain.from_iterable(line["clips"] for line in lines))
    assert len(recorded) == 15 and len({interval for _, interval in recorded}) > 4


def test_every_epoch_takes_each_video_once_and_k_epochs_take_each_clip(by_clips: Path) -> None:
    draws = open_latents(by_clips, CLIPS).draws
    epochs = [[draws.draw(5 * epoch + place) for place in range(5)] for epoch in range(3)]
    assert all(len({draw.video for draw in epoch}) == 5 for epoch in epochs)
    assert len({(draw.video, draw.start) for epoch in epochs for draw in epoch}) == 15
    assert epochs[0] != epochs[1] and draws.draw(17) == open_latents(by_clips, CLIPS).draws.draw(17)


@pytest.mark.parametrize(("field", "value"), [("frames", 9), ("interval_max", 3), ("interval_min", 2)])
def test_recorded_clips_of_other_frames_or_intervals_are_refused(by_clips: Path, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"encoded with data\.{field} \d+, not {value}; set --data\.{field}"):
        open_latents(by_clips, replace(CLIPS, **{field: value}))


def test_latents_of_another_autoencoder_or_size_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path)
    with pytest.raises(ValueError, match=r"made by autoencoder mean-1, not mean-2"):
        LatentDataset(tmp_path, CONFIG, 0, "mean-2")
    with pytest.raises(ValueError, match=r"of 32x32 frames, data has 64x32"):
        open_latents(tmp_path, replace(height=64))
    with pytest.raises(ValueError, match=r"cut by 'cover, .*bicubic', not 'cover, .*bicubic, 12\.5 frames a second'"):
        open_latents(tmp_path, replace(fps=12.5))
    header = json.loads((tmp_path / HEADER_NAME).read_text())
    (tmp_path / HEADER_NAME).write_text(json.dumps(header | {"fit": "stretched"}))
    with pytest.raises(ValueError, match="cut by 'stretched', not 'cover"):
        open_latents(tmp_path)


def test_shard_that_strayed_in_from_another_folder_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    for vae in ("mean-1", "mean-2"):
        write(index, tmp_path / vae, id=vae)
    (tmp_path / "mean-2" / "shard-00000.safetensors").replace(tmp_path / "mean-1" / "shard-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors: belongs to other settings"):
        dataset = open_latents(tmp_path / "mean-1")
        for sample in range(5):
            dataset[sample]
    (tmp_path / "mean-2" / "shard-00000.jsonl").replace(tmp_path / "mean-1" / "shard-00000.jsonl")
    with pytest.raises(ValueError, match=r"shard-00000\.jsonl: belongs to other settings"):
        open_latents(tmp_path / "mean-1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_suffix(".jsonl").unlink(),
        lambda path: path.with_suffix(".jsonl").write_text("{}"),
        lambda path: path.with_suffix(".jsonl").write_bytes(path.with_suffix(".jsonl").read_bytes()[:-20]),
    ],
)
def test_half_written_shard_is_noticed_before_training(index: VideoIndex, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    write(index, tmp_path)
    damage(tmp_path / "shard-00001.safetensors")
    with pytest.raises(DataError, match=r"shard-00001\..*run 'magi encode' again") as error:
        open_latents(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"])
def test_shard_of_the_right_size_that_is_no_safetensors_is_refused(
    index: VideoIndex, tmp_path: Path, header: bytes
) -> None:
    write(index, tmp_path, videos_per_shard=6)
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    with pytest.raises((DataError, ValueError), match=r"shard-00000\.safetensors: (missing or damaged|belongs)"):
        open_latents(tmp_path)[0]


def test_lines_that_say_something_else_than_the_tensors_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path, videos_per_shard=6)
    path = tmp_path / "shard-00000.jsonl"
    lines = path.read_text().splitlines()
    for frames in (29, 10**6):
        changed = json.dumps(json.loads(lines[2]) | {"frames": frames})
        path.write_text("\n".join([*lines[:2], changed, *lines[3:]]) + "\n")
        with pytest.raises(DataError, match=r"it does not hold what shard-00000\.jsonl says; run 'magi encode' again"):
            open_latents(tmp_path)[0]
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"mean": [0.0]}), *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="statistics of 1 channels, not 3"):
        open_latents(tmp_path)


@pytest.mark.parametrize("sampled", [True, False])
def test_latents_are_raw_on_disk_and_whitened_on_load(index: VideoIndex, by_clips: Path, sampled: bool) -> None:
    """By default with what was measured while encoding: all of them together have mean 0 and variance 1."""
    config = replace(CLIPS, sample_posterior=sampled)
    dataset, raw = LatentDataset(by_clips, config, 0, "mean-1"), open_latents(by_clips, config)
    mean_C, std_C = np.array(dataset.measured.mean), np.array(dataset.measured.std)
    clips, raws = (np.stack([found[sample].latents_TCHW for sample in range(15)]) for found in (dataset, raw))
    np.testing.assert_allclose(clips, (raws - mean_C[:, None, None]) / std_C[:, None, None], rtol=1e-4, atol=1e-5)
    values_CN = clips.swapaxes(0, 2).reshape(3, -1)
    assert np.abs(values_CN.mean(1)).max() < 0.1 and np.abs(values_CN.std(1) - 1).max() < 0.1
    other = dataset.measured.model_copy(update={"mean": (1.0, 2.0, 3.0), "std": (2.0, 4.0, 8.0)})
    dataset.normalize(other)
    expected = (raws[0] - np.array(other.mean)[:, None, None]) / np.array(other.std)[:, None, None]
    np.testing.assert_allclose(dataset[0].latents_TCHW, expected, rtol=1e-4, atol=1e-5)


def test_not_finite_on_disk_names_the_video(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path, videos_per_shard=6)
    path = tmp_path / "shard-00000.safetensors"
    latents = load_file(path)
    latents["mean"][: index.videos[0].frames, 0, 0, 0] = np.nan
    save_file(latents, path, metadata={"settings": read_header(tmp_path).digest})
    with pytest.raises(DataError, match=index.videos[0].path):
        fresh = open_latents(tmp_path)
        for sample in range(5):
            fresh[sample]


def test_folders_of_latents_and_of_videos_are_told_apart(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "out")
    assert is_latents(tmp_path / "out") and not is_latents(index.root) and not is_latents(tmp_path / "missing")
    with pytest.raises(DataError, match=r"holds no latents; make them with 'magi encode'"):
        open_latents(index.root)


def test_shards_that_lost_their_header_are_latents_that_miss_it(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path)
    whole = (tmp_path / HEADER_NAME).read_bytes()
    (tmp_path / HEADER_NAME).unlink()
    assert is_latents(tmp_path)
    with pytest.raises(DataError, match=rf"{HEADER_NAME}: missing, though the folder holds shards"):
        open_latents(tmp_path)
    write(index, tmp_path)
    assert (tmp_path / HEADER_NAME).read_bytes() == whole


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\x00\xff", '{"format": 4}'])
def test_damaged_header_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / HEADER_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{HEADER_NAME}: damaged or of another version") as error:
        open_latents(tmp_path)
    assert "\n" not in str(error.value)


def test_a_header_of_absurd_size_is_not_read(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path)
    os.truncate(tmp_path / HEADER_NAME, 8 << 30)
    with pytest.raises(DataError, match=f"{HEADER_NAME}: damaged .* above 268,435,456"):
        open_latents(tmp_path)


@pytest.mark.parametrize("older", [1, 2, 3])
def test_folder_of_an_older_format_is_one_line(index: VideoIndex, tmp_path: Path, older: int) -> None:
    old = {"format": older, "vae": "x", "height": 64, "width": 64, "classes": [], "videos": 1, "videos_per_shard": 100}
    (tmp_path / HEADER_NAME).write_text(json.dumps(old | {"source": "y"}))
    for attempt in (lambda: open_latents(tmp_path), lambda: write(index, tmp_path)):
        with pytest.raises(
            DataError, match=rf"format {older} is not 5\); delete the folder and run 'magi encode' again"
        ):
            attempt()


def test_clip_longer_than_every_video_is_refused_by_length(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path / "frames")
    with pytest.raises(DataError, match="longest of 6 videos has 30"):
        open_latents(tmp_path / "frames", replace(frames=31))
    long = replace(CLIPS, frames=33)
    write(index, tmp_path / "clips", long, encode_clip)
    with pytest.raises(DataError, match="none of 6 videos held a clip of 33 frames"):
        open_latents(tmp_path / "clips", long)


def test_loader_processes_open_their_own_files(index: VideoIndex, tmp_path: Path) -> None:
    write(index, tmp_path)
    dataset = open_latents(tmp_path)
    expected = [dataset[sample].latents_TCHW for sample in range(5)]
    copied = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(copied[sample].latents_TCHW, expected[sample]) for sample in range(5))
