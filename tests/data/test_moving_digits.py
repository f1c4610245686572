"""The built-in videos keep the physics they claim: pixels, sidecar and closed form agree."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magi.config import DataConfig
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.data.moving_digits import clip_path, digit_video, glyph_path, write_digits


def ink_centroids(video_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    ink_THW = video_THWC[..., 0].astype(np.float64)
    total_T = ink_THW.sum((1, 2))
    y, x = np.arange(ink_THW.shape[1]), np.arange(ink_THW.shape[2])
    return np.stack([ink_THW.sum(1) @ x / total_T, ink_THW.sum(2) @ y / total_T], axis=1)


@pytest.mark.parametrize(("clip_number", "size"), [(0, 64), (1, 64), (4, 64), (7, 64), (8, 64), (13, 48), (22, 96)])
def test_ink_in_the_pixels_is_where_the_physics_says(clip_number: int, size: int) -> None:
    video = digit_video(seed=3, clip_number=clip_number, size=size)
    assert np.abs(ink_centroids(video.video_THWC) - video.centroids_GT2[0]).max() < 0.02


@pytest.mark.parametrize("clip_number", range(10))
def test_no_ink_is_ever_cut_off_by_the_border(clip_number: int) -> None:
    ink_T = digit_video(seed=1, clip_number=clip_number).video_THWC.astype(np.float64).sum((1, 2, 3))
    assert ink_T.min() > 0.995 * ink_T.max()


def test_path_is_uniform_motion_with_elastic_reflection() -> None:
    glyph = digit_video(seed=0, clip_number=5, frames=1).glyphs[0]
    glyph = replace(glyph, velocity=(2.3, -1.7))
    substeps = 1000  # the simulation reflects at the end of a small step; the closed form reflects exactly
    place_2, speed_2 = np.array(glyph.start), np.array(glyph.velocity) / substeps
    simulated = [place_2]
    for _ in range(150):
        for _ in range(substeps):
            place_2 = place_2 + speed_2
            beyond_2 = (place_2 < glyph.low) | (place_2 > glyph.high)
            speed_2 = np.where(beyond_2, -speed_2, speed_2)
        simulated.append(place_2)
    assert np.abs(glyph_path(glyph, np.arange(151)) - simulated).max() < 0.05


def test_clip_is_a_pure_function_of_seed_and_number() -> None:
    first, again = digit_video(7, 12, frames=20), digit_video(7, 12, frames=20)
    assert first.video_THWC.tobytes() == again.video_THWC.tobytes() and first.glyphs == again.glyphs
    assert digit_video(8, 12).glyphs != first.glyphs and digit_video(7, 22).glyphs != first.glyphs
    assert np.array_equal(digit_video(7, 12, frames=30).video_THWC[:20], first.video_THWC)


def test_looks_and_paths_cover_their_ranges() -> None:
    glyphs = [digit_video(0, number, frames=1).glyphs[0] for number in range(200)]
    speeds = [np.hypot(*glyph.velocity) for glyph in glyphs]
    assert 0.8 <= min(speeds) < 1.0 and 2.2 < max(speeds) <= 2.4
    assert min(g.height for g in glyphs) < 20 and max(g.height for g in glyphs) > 26
    assert min(g.slant for g in glyphs) < -0.2 and max(g.slant for g in glyphs) > 0.2
    assert [g.digit for g in glyphs[:20]] == [*range(10), *range(10)]


def test_glyphs_pass_through_each_other() -> None:
    one, two = digit_video(0, 3), digit_video(0, 3, glyphs=2)
    assert two.glyphs[0] == one.glyphs[0] and two.label == one.label == 3
    assert np.array_equal(two.centroids_GT2[0], one.centroids_GT2[0])
    assert np.all(two.video_THWC >= one.video_THWC)
    crossing = np.abs(two.centroids_GT2[0] - two.centroids_GT2[1]).max(axis=1).argmin()
    ink_T = two.video_THWC.astype(np.float64).sum((1, 2, 3))
    assert ink_T[crossing] < 0.95 * ink_T.max()  # they did overlap, so the claim was put to the test


def test_written_folder_is_videos_with_exact_sidecars(tmp_path: Path) -> None:
    assert write_digits(tmp_path, clips=12, seed=5, frames=9) == 12
    index = open_index(DataConfig(root=str(tmp_path), max_bad_fraction=0.0))
    assert index.classes == tuple("0123456789") and len(index.videos) == 12
    for record in index.videos:
        path = tmp_path / record.path
        sidecar = json.loads(path.with_suffix(".json").read_text())
        drawn = digit_video(5, int(path.stem.split("_")[1]), frames=9)
        assert sidecar["class"] == path.parent.name == str(drawn.label)
        assert (sidecar["size"], sidecar["fps"], sidecar["seed"]) == (64, 25, 5)
        assert np.array_equal(np.array([g["positions"] for g in sidecar["glyphs"]]), drawn.centroids_GT2)
        frames_THWC = read_frames(path, range(9), record)
        assert np.abs(frames_THWC.astype(int) - drawn.video_THWC).mean() < 1
        assert np.abs(ink_centroids(frames_THWC) - drawn.centroids_GT2[0]).max() < 0.2


def test_second_call_writes_nothing_and_a_lost_clip_comes_back_the_same(tmp_path: Path) -> None:
    write_digits(tmp_path, clips=3, frames=5)
    lost = clip_path(tmp_path, 1)
    before = lost.read_bytes()
    assert write_digits(tmp_path, clips=3, frames=5) == 0
    lost.unlink()
    calls: list[tuple[int, int]] = []
    assert write_digits(tmp_path, clips=3, frames=5, progress=lambda done, total: calls.append((done, total))) == 1
    assert lost.read_bytes() == before and calls == [(1, 3), (2, 3), (3, 3)]


def test_clips_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    write_digits(tmp_path, clips=3, frames=5)
    with pytest.raises(ValueError, match=r"has seed 0, asked 1; choose another folder"):
        write_digits(tmp_path, clips=3, frames=5, seed=1)
    with pytest.raises(ValueError, match=r"more than the 2 clips asked"):
        write_digits(tmp_path, clips=2, frames=5)
    clip_path(tmp_path, 0).with_suffix(".json").write_text("[]")
    with pytest.raises(ValueError, match=r"0_00000.json: not a sidecar"):
        write_digits(tmp_path, clips=3, frames=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 63}, "even"), ({"size": 16}, "32"), ({"frames": 0}, "frames"), ({"glyphs": 0}, "glyphs")],
)
def test_what_cannot_be_drawn_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digit_video(0, 0, **settings)
