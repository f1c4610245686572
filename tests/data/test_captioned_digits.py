"""Captioned digits: what is drawn is what the attributes say, in pixels and in files."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from magi.data.captioned_digits import (
    GREYS,
    HEIGHTS,
    SPEEDS,
    STRAIGHT_FRAMES,
    WEIGHTS,
    captioned_video,
    is_held_out,
    write_captioned_digits,
)
from magi.data.digit_captions import DIRECTIONS, PHRASES, VALUES
from magi.data.moving_digits import clip_path, write_digits

COUNT = 400
VIDEOS = [captioned_video(0, number, "held-out" if number >= 300 else "seen") for number in range(COUNT)]


def test_the_glyph_lies_in_the_bins_of_its_attributes() -> None:
    for video in VIDEOS:
        glyph, said = video.glyph, video.attributes
        assert str(glyph.digit) == said.digit
        for value, bins, name in (
            (glyph.height, HEIGHTS, said.size),
            (glyph.weight, WEIGHTS, said.weight),
            (glyph.grey, GREYS, said.brightness),
            (float(np.hypot(*glyph.velocity)), SPEEDS, said.speed),
        ):
            assert bins[name][0] <= value <= bins[name][1]


def test_bins_are_well_apart() -> None:
    for low, high in (HEIGHTS.values(), WEIGHTS.values(), GREYS.values(), SPEEDS.values()):
        assert high[0] - low[1] > max(high[1] - high[0], low[1] - low[0])


def test_the_digit_goes_straight_where_the_caption_is_checked() -> None:
    for video in VIDEOS:
        first_T2 = video.centroids_T2[:STRAIGHT_FRAMES]
        assert np.allclose(np.diff(first_T2, axis=0), video.glyph.velocity)
        turn = np.degrees(np.arctan2(video.glyph.velocity[1], video.glyph.velocity[0]))
        off = (turn - 45 * DIRECTIONS.index(video.attributes.direction) + 180) % 360 - 180
        assert abs(off) <= 8.001


def test_no_ink_is_cut_off() -> None:
    for video in VIDEOS[::10]:
        ink_T = video.video_THWC.astype(np.float64).sum((1, 2, 3))
        assert ink_T.min() > 0.995 * ink_T.max()


def test_every_value_is_drawn_and_digits_take_turns() -> None:
    assert [video.attributes.digit for video in VIDEOS[:20]] == [*VALUES["digit"], *VALUES["digit"]]
    for name, values in VALUES.items():
        found = Counter(getattr(video.attributes, name) for video in VIDEOS)
        assert set(found) == set(values) and min(found.values()) > 0.6 * COUNT / len(values)


def test_held_out_pairs_are_shown_by_held_out_videos_alone() -> None:
    pairs = [{(v.attributes.digit, v.attributes.direction) for v in some} for some in (VIDEOS[:300], VIDEOS[300:])]
    assert not any(is_held_out(video.attributes) for video in VIDEOS[:300])
    assert all(is_held_out(video.attributes) for video in VIDEOS[300:])
    assert len(pairs[1]) == 10 and not pairs[0] & pairs[1]
    assert {direction for _, direction in pairs[1]} == set(DIRECTIONS)  # so that no direction is left out of training


def test_a_clip_is_a_pure_function_of_its_key() -> None:
    first, again = captioned_video(7, 12), captioned_video(7, 12, frames=20)
    assert np.array_equal(first.video_THWC, again.video_THWC[:16]) and first.caption == again.caption
    assert captioned_video(8, 12).glyph != first.glyph and captioned_video(7, 22).glyph != first.glyph


def test_a_folder_holds_each_video_with_its_caption_and_truth(tmp_path: Path) -> None:
    assert write_captioned_digits(tmp_path, 12, seed=3) == 12
    for number in range(12):
        path, drawn = clip_path(tmp_path, number), captioned_video(3, number)
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert path.with_suffix(".txt").read_text() == f"{drawn.caption}\n" and sidecar["caption"] == drawn.caption
        assert sidecar["attributes"] == {name: getattr(drawn.attributes, name) for name in VALUES}
        assert sidecar["named"] == sorted(drawn.wording.named)
        assert np.array_equal(np.array(sidecar["glyphs"][0]["positions"]), drawn.centroids_T2)


@pytest.mark.parametrize("suffix", [".mp4", ".txt", ".json"])
def test_a_lost_file_comes_back_the_same(tmp_path: Path, suffix: str) -> None:
    write_captioned_digits(tmp_path, 3)
    lost = clip_path(tmp_path, 1).with_suffix(suffix)
    before = lost.read_bytes()
    assert write_captioned_digits(tmp_path, 3) == 0
    lost.unlink()
    assert write_captioned_digits(tmp_path, 3) == 1 and lost.read_bytes() == before


def test_kinds_of_digits_are_never_mixed(tmp_path: Path) -> None:
    write_captioned_digits(tmp_path / "captioned", 2)
    with pytest.raises(ValueError, match="has combinations seen, asked held-out; choose another folder"):
        write_captioned_digits(tmp_path / "captioned", 2, combinations="held-out")
    with pytest.raises(ValueError, match="not a sidecar of built-in digits; choose another folder"):
        write_digits(tmp_path / "captioned", 2, frames=16)
    write_digits(tmp_path / "plain", 2, frames=16)
    with pytest.raises(ValueError, match="not a sidecar of captioned digits; choose another folder"):
        write_captioned_digits(tmp_path / "plain", 2)


def test_the_words_of_a_direction_are_where_the_digit_goes() -> None:
    for video in VIDEOS[:100]:
        (x, y), least = video.glyph.velocity, 0.3 * np.hypot(*video.glyph.velocity)
        for phrase in PHRASES["direction"][video.attributes.direction]:
            assert ("right" in phrase) == (x > least) and ("left" in phrase) == (x < -least)
            assert bool({"down", "downwards", "lower", "bottom"} & set(phrase.split())) == (y > least)
            assert bool({"up", "upwards", "upper", "top"} & set(phrase.split())) == (y < -least)
