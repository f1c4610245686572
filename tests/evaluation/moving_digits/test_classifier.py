"""The classifier behind ``class_accuracy``: right on clean digits, whatever their place and grey level."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magi.data.moving_digits import digit_video
from magi.evaluation.moving_digits.classifier import (
    HELD_OUT_SEED,
    SHIPPED,
    DigitClassifier,
    centred_crops,
    held_out_accuracy,
)
from magi.evaluation.moving_digits.intensity import centroids, foreground_intensity
from runs.train_digit_classifier import load_card, save_classifier, train_classifier


def test_shipped_classifier_is_right_on_held_out_digits() -> None:
    model, card = DigitClassifier.load(), load_card()
    assert card.held_out_seed != card.seed
    assert card.held_out_accuracy >= 0.99
    assert held_out_accuracy(model, clips=300) >= 0.99
    assert SHIPPED.stat().st_size < 300_000


@pytest.mark.parametrize("size", [48, 96])
def test_other_frame_sizes_are_classified_as_well(size: int) -> None:
    assert held_out_accuracy(DigitClassifier.load(), clips=50, size=size) >= 0.98


def test_place_and_grey_level_do_not_matter() -> None:
    frame_HW = np.zeros((64, 64), np.float32)
    frame_HW[30:40, 28:36] = np.random.default_rng(0).uniform(100, 200, (10, 8))
    moved_HW = np.roll(frame_HW, (-11, 9), axis=(0, 1)) * 0.6
    both_FHW = np.stack([frame_HW, moved_HW])
    first_1HW, second_1HW = centred_crops(both_FHW, centroids(both_FHW))
    assert first_1HW.max() == 1 and first_1HW.std() > 0.05
    torch.testing.assert_close(first_1HW, second_1HW, atol=1e-4, rtol=0)


def test_crop_shows_a_glyph_of_any_look_whole() -> None:
    for number in range(40):
        intensity_FHW = foreground_intensity(digit_video(9, number, frames=1).video_THWC)
        crop_1HW = centred_crops(intensity_FHW, centroids(intensity_FHW))[0]
        edge = torch.cat([crop_1HW[0, [0, -1]].flatten(), crop_1HW[0, :, [0, -1]].flatten()])
        assert edge.max() == 0


def test_black_frame_has_no_class() -> None:
    frames_FHWC = np.concatenate([digit_video(9, number, frames=1).video_THWC for number in (3, 4)])
    frames_FHWC[0] = 10  # below the threshold
    assert DigitClassifier.load().classify(frames_FHWC).tolist() == [-1, 4]


def test_training_is_reproducible_learns_and_leaves_global_randomness_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    (first, card), (again, _) = (train_classifier(seed=1, clips=300, epochs=5, held_out_clips=100) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert card.held_out_accuracy > 0.5
    save_classifier(first, card, tmp_path / "small.safetensors")
    loaded = DigitClassifier.load(tmp_path / "small.safetensors")
    assert load_card(tmp_path / "small.safetensors") == card
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), loaded.parameters(), strict=True))


def test_training_on_the_held_out_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        train_classifier(seed=HELD_OUT_SEED, clips=10)


@pytest.mark.parametrize("size", [64, 128])
def test_a_crop_is_a_window_of_five_eighths_of_the_frame(size: int) -> None:
    """32 points: on a ramp they read their own places, 5/8 of the frame's height from the first outwards."""
    ramp_HW = np.tile(np.arange(size, dtype=np.float32), (size, 1))
    centre = size / 2 + 0.25
    for frame_HW, axis in ((ramp_HW, 0), (ramp_HW.T, 1)):
        crop_HW = centred_crops(np.ascontiguousarray(frame_HW)[None], np.array([[centre, centre]]))[0, 0]
        places_P = centre + (torch.arange(32) - 15.5) * (5 / 8 * size / 32)
        expected_HW = (places_P / places_P[-1]).expand(32, -1)
        torch.testing.assert_close(crop_HW, expected_HW if axis == 0 else expected_HW.T, rtol=1e-4, atol=1e-4)
