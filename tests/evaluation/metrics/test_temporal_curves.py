"""The drift curve and its companions: what a shift, a blur, a freeze and a dimming do to each, and the bands."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from magi.data.moving_digits import digit_video
from magi.evaluation.metrics.bootstrap import Curve, mean_curve, ratio_curve
from magi.evaluation.metrics.temporal_curves import (
    CURVES,
    INTERVALS,
    adjacent_l2,
    brightness,
    motion,
    sharpness,
)


def moving_bar(speed: float, frames: int = 5, level: int = 200) -> Tensor:
    """A soft upright bar that moves to the right by ``speed`` pixels a frame."""
    x = torch.arange(64).float()
    profile_TW = torch.stack([torch.sigmoid(12 - (x - 20 - speed * t).abs()) for t in range(frames)])
    frames_THW = level * profile_TW[:, None, :].expand(-1, 64, -1)
    return frames_THW.round().to(torch.uint8)[None, ..., None].expand(1, frames, 64, 64, 3)


def test_adjacent_l2_is_the_root_mean_square_of_the_change() -> None:
    video = torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)
    video[0, 1] = 51  # 0.2
    video[0, 2] = 51
    video[0, 2, 0, 0, 0] = 51 + 102  # one of 48 values by 0.4
    expected = [0.2, (0.4**2 / 48) ** 0.5]
    assert adjacent_l2(video)[0].tolist() == pytest.approx(expected)


def test_sharpness_is_the_root_mean_square_of_the_laplacian() -> None:
    """Of one point: -4 there and 1 at its four neighbours, over the 36 places where the kernel fits into 8 x 8."""
    video = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    video[0, 0, 3, 4] = 51  # 0.2 in all colours
    video[0, 1, 3, 4, 1] = 51  # in one of three
    assert sharpness(video)[0].tolist() == pytest.approx([0.2 * (20 / 36) ** 0.5, 0.2 / 3 * (20 / 36) ** 0.5])
    assert brightness(video)[0].tolist() == pytest.approx([0.2 / 64, 0.2 / 192])


def test_falling_grey_levels_do_not_wrap_around() -> None:
    video = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    video[0, 0] = 10
    assert float(adjacent_l2(video)) == pytest.approx(10 / 255)


def test_motion_is_a_speed_in_pixels_whatever_the_contrast() -> None:
    for level in (60, 200):
        for speed in (0.5, 1.0, 2.0):
            assert motion(moving_bar(speed, level=level)).mean().item() == pytest.approx(speed, rel=0.15)
    assert adjacent_l2(moving_bar(1.0, level=60)).mean() < 0.5 * adjacent_l2(moving_bar(1.0)).mean()


def test_freezing_blurring_and_dimming_show_where_they_should() -> None:
    video = torch.from_numpy(digit_video(3, 4, frames=8).video_THWC)[None]
    frozen = video[:, :1].expand_as(video)
    assert not adjacent_l2(frozen).any() and not motion(frozen).any()
    planes = video.flatten(0, 1).permute(0, 3, 1, 2).float()
    blurred = functional.avg_pool2d(planes, 5, 1, 2).permute(0, 2, 3, 1)[None].to(torch.uint8)
    assert (sharpness(blurred) < 0.5 * sharpness(video)).all()
    torch.testing.assert_close(brightness(blurred), brightness(video), rtol=0.1, atol=1e-3)
    dimmed = (video // 2).to(torch.uint8)
    torch.testing.assert_close(brightness(dimmed), brightness(video) / 2, rtol=0.05, atol=1e-3)


def test_real_curves_rise_with_the_interval() -> None:
    videos = torch.stack([torch.from_numpy(digit_video(5, k, frames=40).video_THWC) for k in range(6)])
    levels = [float(adjacent_l2(videos[:, ::interval][:, :5]).mean()) for interval in INTERVALS]
    assert levels == sorted(levels) and levels[-1] > 1.5 * levels[0]


def test_curves_have_a_value_a_clip_and_frame_and_are_kept_as_numbers() -> None:
    video = torch.from_numpy(digit_video(1, 2, frames=6).video_THWC)[None].repeat(2, 1, 1, 1, 1)
    for name, curve in CURVES.items():
        values = curve(video)
        assert values.shape == (2, 5 if name in ("adjacent_l2", "motion") else 6) and values.dtype == torch.float64
    assert len(mean_curve(adjacent_l2(video), 0).mean) == 5
    still = ratio_curve(torch.ones(3, 2), torch.tensor([[0.0, 2.0]] * 3), 0)  # nothing moves at the first real frame
    assert still == Curve((None, 0.5), (None, 0.5), (None, 0.5))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        adjacent_l2(torch.zeros(1, 3, 8, 8, 3))
    with pytest.raises(ValueError, match="at least 2 frames"):
        motion(torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8))
