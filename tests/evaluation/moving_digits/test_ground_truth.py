"""Each metric is perfect for real clips, and moves by the computed amount where a video is corrupted on purpose."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from magi.data.moving_digits import digit_video
from magi.errors import DataError
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.ground_truth import BADNESS, NEAR_FRAMES, RealClip, measure
from magi.evaluation.moving_digits.intensity import THRESHOLD, centroids, foreground_intensity
from magi.evaluation.protocol.ground_truth import Curves, FrameRange, frame_ranges, judge, range_mean, worst_bin
from magi.evaluation.protocol.result import JudgedTarget, Target

FRAMES = 20


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return DigitClassifier.load()


@pytest.fixture(scope="module")
def clips() -> list[RealClip]:
    videos = [digit_video(seed=5, clip_number=number, frames=FRAMES) for number in range(10)]
    return [
        RealClip(str(number), video.video_THWC, video.label, video.centroids_GT2[0])
        for number, video in enumerate(videos)
    ]


def stacked(clips: list[RealClip]) -> NDArray[np.uint8]:
    return np.stack([clip.video_THWC for clip in clips])


def paths(clips: list[RealClip]) -> NDArray[np.float64]:
    return np.stack([clip.path_T2 for clip in clips])


def assert_perfect(figures: Curves, *metrics: str) -> None:
    for metric in metrics:
        expected = {"class_accuracy": (1, 0), "position_error_px": (0, 0.1), "intensity_ratio": (1, 0.01)}
        best, tolerance = expected[metric]
        np.testing.assert_allclose(figures[metric], best, atol=tolerance)


def test_real_clips_are_perfect(clips: list[RealClip], classifier: DigitClassifier) -> None:
    figures = measure(stacked(clips), clips, classifier)
    assert_perfect(figures, "class_accuracy", "position_error_px", "intensity_ratio")
    assert all(values_BT.shape == (10, FRAMES) for values_BT in figures.values())


def test_shift_is_a_position_error_and_nothing_else(clips: list[RealClip], classifier: DigitClassifier) -> None:
    inside_BT = ~stacked(clips)[:, :, :, -3:].any((2, 3, 4))  # no light falls out on the right
    assert inside_BT.sum() > 80
    figures = measure(np.roll(stacked(clips), 3, axis=3), clips, classifier)
    np.testing.assert_allclose(figures["position_error_px"][inside_BT], 3, atol=0.1)
    np.testing.assert_allclose(figures["intensity_ratio"][inside_BT], 1, atol=1e-9)
    assert figures["class_accuracy"][inside_BT].all()


def test_frozen_video_errs_by_the_way_the_glyph_has_gone(clips: list[RealClip], classifier: DigitClassifier) -> None:
    frozen_BTHWC = np.repeat(stacked(clips)[:, :1], FRAMES, axis=1)
    figures = measure(frozen_BTHWC, clips, classifier)
    gone_BT = np.linalg.norm(paths(clips) - paths(clips)[:, :1], axis=-1)
    assert gone_BT.max() > 15
    np.testing.assert_allclose(figures["position_error_px"], gone_BT, atol=0.1)
    assert_perfect(figures, "class_accuracy")
    np.testing.assert_allclose(figures["intensity_ratio"], 1, atol=0.03)


def test_swapped_videos_keep_no_class_and_follow_the_other_path(
    clips: list[RealClip], classifier: DigitClassifier
) -> None:
    figures = measure(stacked(clips[1:] + clips[:1]), clips, classifier)
    assert not figures["class_accuracy"].any()
    other_BT2 = np.roll(paths(clips), -1, axis=0)
    expected_BT = np.linalg.norm(other_BT2 - paths(clips), axis=-1)
    np.testing.assert_allclose(figures["position_error_px"], expected_BT, atol=0.2)


def test_half_the_brightness_is_half_the_intensity(clips: list[RealClip], classifier: DigitClassifier) -> None:
    figures = measure(stacked(clips) // 2, clips, classifier)
    np.testing.assert_allclose(figures["intensity_ratio"], 0.5, atol=0.02)
    assert_perfect(figures, "class_accuracy")
    np.testing.assert_allclose(figures["position_error_px"], 0, atol=0.2)  # faint edges fall below the threshold


def test_foreground_that_comes_and_goes_is_counted_frame_by_frame(
    clips: list[RealClip], classifier: DigitClassifier
) -> None:
    video_BTHWC = stacked(clips)
    video_BTHWC[2, 7] = 0
    figures = measure(video_BTHWC, clips, classifier)
    assert figures["class_accuracy"][2, 7] == 0 and figures["class_accuracy"].sum() == 10 * FRAMES - 1
    assert figures["position_error_px"][2, 7] == 32
    assert figures["intensity_ratio"][2, 7] == 0


def test_another_clips_sidecar_is_noticed(clips: list[RealClip], classifier: DigitClassifier) -> None:
    moved = [replace(clip, path_T2=clip.path_T2 + np.array([3.0, -4.0])) for clip in clips]
    np.testing.assert_allclose(measure(stacked(clips), moved, classifier)["position_error_px"], 5, atol=0.1)
    renamed = [replace(clip, label=(clip.label + 1) % 10) for clip in clips]
    assert not measure(stacked(clips), renamed, classifier)["class_accuracy"].any()


def test_invisible_haze_is_no_foreground(clips: list[RealClip], classifier: DigitClassifier) -> None:
    hazy_BTHWC = np.maximum(stacked(clips), THRESHOLD - 1)
    clean, hazy = measure(stacked(clips), clips, classifier), measure(hazy_BTHWC, clips, classifier)
    for metric in clean:
        np.testing.assert_array_equal(clean[metric], hazy[metric])


def test_real_black_frame_is_refused(clips: list[RealClip], classifier: DigitClassifier) -> None:
    black = [replace(clips[0], video_THWC=np.zeros_like(clips[0].video_THWC))]
    with pytest.raises(DataError, match="no glyph"):
        measure(stacked(clips[:1]), black, classifier)


def test_intensity_and_centroid_of_a_hand_made_frame() -> None:
    frame_HWC = np.zeros((6, 8, 3), np.uint8)
    frame_HWC[1, 2], frame_HWC[3, 6] = (90, 60, 30), (180, 180, 180)  # intensity 60 and 180
    intensity_HW = foreground_intensity(frame_HWC)
    assert intensity_HW.sum() == 240 and intensity_HW[1, 2] == 60
    np.testing.assert_allclose(centroids(intensity_HW), [(2 * 60 + 6 * 180) / 240, (1 * 60 + 3 * 180) / 240])


@pytest.mark.parametrize(
    ("context", "frames", "names"),
    [
        (4, 104, ["5-16", "17-104", "5-104"]),
        (4, 16, ["5-16"]),
        (1, 10, ["2-10"]),
        (20, 40, ["21-40"]),
        (16, 40, ["17-40"]),
    ],
)
def test_ranges_cover_the_generated_frames(context: int, frames: int, names: list[str]) -> None:
    assert [part.name for part in frame_ranges(context, frames, NEAR_FRAMES)] == names


def test_range_mean_takes_its_frames_and_resamples_clips() -> None:
    numbers_BT = np.tile(np.arange(1.0, 105.0), (3, 1))  # every frame holds its number
    assert range_mean(numbers_BT, FrameRange(5, 16)).value == 10.5
    assert range_mean(numbers_BT, FrameRange(17, 104)).value == 60.5
    same = range_mean(numbers_BT, FrameRange(5, 16))
    assert same.low == same.high == 10.5  # equal clips leave no doubt, however frames differ
    unlike = range_mean(np.array([[0.0] * 50, [1.0] * 50]), FrameRange(1, 50))
    assert (unlike.value, unlike.low, unlike.high) == (0.5, 0.0, 1.0)  # many frames do not make two clips more
    assert unlike.std == pytest.approx(0.125**0.5, abs=0.02)  # 0, 1/2, 1 in a quarter, half and a quarter of the draws


def test_interval_is_about_two_standard_errors_wide() -> None:
    values_BT = np.random.default_rng(0).normal(3, 2, (400, 1))
    found = range_mean(values_BT, FrameRange(1, 1))
    error = values_BT.std() / 20
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.15)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.15)


def test_worst_bin_is_where_each_metric_is_worst() -> None:
    values_BT = np.ones((2, 104))
    values_BT[:, 24:34] = 0.8  # frames 25 to 34
    values_BT[:, 94:104] = 1.2  # frames 95 to 104; 1 / 0.8 is farther from 1 than 1.2
    part = FrameRange(5, 104)
    assert worst_bin(BADNESS["class_accuracy"], values_BT, part) == (FrameRange(25, 34), pytest.approx(0.8))
    assert worst_bin(BADNESS["intensity_ratio"], values_BT, part) == (FrameRange(25, 34), pytest.approx(0.8))
    assert worst_bin(BADNESS["position_error_px"], values_BT, part) == (FrameRange(95, 104), pytest.approx(1.2))
    assert worst_bin(BADNESS["position_error_px"], values_BT, FrameRange(5, 16))[0] == FrameRange(5, 14)


def test_a_target_is_judged_on_the_range_and_the_metric_that_it_names() -> None:
    ranges = [FrameRange(1, 2), FrameRange(3, 4)]
    curves = {"a": np.array([[1.0, 1.0, 5.0, 5.0]] * 2), "b": np.array([[7.0, 7.0, 9.0, 9.0]] * 2)}
    targets = [Target("3-4", "a", None, 4.0), Target("1-2", "b", 6.0, 8.0), Target("5-6", "a", 0.0, 9.0)]
    assert judge(curves, targets, ranges) == (
        JudgedTarget("3-4", "a", None, 4.0, 5.0, False),
        JudgedTarget("1-2", "b", 6.0, 8.0, 7.0, True),
    )
