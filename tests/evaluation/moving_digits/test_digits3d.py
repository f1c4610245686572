"""digits3d: right on held-out digits, and its distance sees motion: order, standstill, speed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from magi.errors import CheckpointError
from magi.evaluation.metrics.frechet import distance_of
from magi.evaluation.moving_digits.digits3d import DIMENSION, MINIMUM_FRAMES, SHIPPED, Digits3d
from magi.evaluation.networks.features import extract
from magi.evaluation.protocol.real_clips import frozen, shuffled
from runs.train_digits3d import (
    HELD_OUT_SEED,
    draw_videos,
    held_out_accuracy,
    load_card,
    save_digits3d,
    train_digits3d,
)

CLIPS = 112


@pytest.fixture(scope="module")
def network() -> Digits3d:
    return Digits3d.load()


@pytest.fixture(scope="module")
def features(network: Digits3d) -> Callable[..., Tensor]:
    drawn = {seed: draw_videos(seed, CLIPS).video_VTHW for seed in (31, 32)}

    def of(seed: int, corrupt: Callable[[Tensor], Tensor] | None = None, interval: int = 1) -> Tensor:
        starts = np.random.default_rng(seed).integers(0, 64 - 31, CLIPS)
        video = torch.stack([drawn[seed][k, s : s + 15 * interval + 1 : interval] for k, s in enumerate(starts)])
        video_BTHWC = video[..., None].expand(-1, -1, -1, -1, 3)
        return extract(network, (corrupt(video_BTHWC) if corrupt else video_BTHWC).split(32))

    return of


def test_shipped_network_does_as_its_card_says(network: Digits3d) -> None:
    card = load_card()
    found = held_out_accuracy(network, clips=80)
    assert card.seed != card.held_out_seed == HELD_OUT_SEED
    assert found["class_accuracy"] > card.class_accuracy - 0.1 > 0.6
    assert found["direction_accuracy"] > card.direction_accuracy - 0.1 > 0.6
    assert found["speed_error"] < card.speed_error + 0.05 < 0.25
    assert SHIPPED.stat().st_size < 1_000_000
    assert json.loads(SHIPPED.with_suffix(".json").read_text())["sha256"] == network.hash


def test_distance_is_sensitive_to_motion(features: Callable[..., Tensor]) -> None:
    """Shuffled, frozen and twice as fast real clips score clearly worse than other real clips do."""
    real = features(31)
    floor = distance_of(real, features(32))
    assert distance_of(real, features(32, lambda video: shuffled(video, 0))) > 4 * floor
    assert distance_of(real, features(32, frozen)) > 2 * floor
    assert distance_of(real, features(32, interval=2)) > 2 * floor
    assert distance_of(real, features(32, lambda video: video // 2)) > 2 * floor


def test_features_belong_to_the_clip_alone(network: Digits3d) -> None:
    video = draw_videos(7, 4).video_VTHW[:, :16, ..., None].expand(-1, -1, -1, -1, 3)
    whole = network.features(video)
    assert whole.shape == (4, DIMENSION) and whole.dtype == torch.float32
    torch.testing.assert_close(network.features(video[2:3]), whole[2:3], rtol=1e-4, atol=1e-4)
    assert not whole.requires_grad


def test_other_sizes_and_lengths_are_taken(network: Digits3d) -> None:
    video = draw_videos(7, 2).video_VTHW[:, :16, ..., None].expand(-1, -1, -1, -1, 3)
    double = video.repeat_interleave(2, 2).repeat_interleave(2, 3)
    near, far = network.features(video), network.features(video.roll(1, 0))
    assert (network.features(double) - near).norm() < 0.3 * (far - near).norm()
    assert network.features(video[:, :MINIMUM_FRAMES]).shape == (2, DIMENSION)
    with pytest.raises(ValueError, match=f"clips of 7 frames, the network needs at least {MINIMUM_FRAMES}"):
        extract(network, [video[:, :7]])


def test_training_is_reproducible_and_leaves_global_randomness_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    (first, card), (again, _) = (train_digits3d(3, 20, 3, 4, held_out_clips=4) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    path = tmp_path / "small.safetensors"
    save_digits3d(first, card, path)
    loaded = Digits3d.load(path)
    assert load_card(path) == card and len(loaded.hash) == 64 and loaded.hash != Digits3d.load().hash
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), loaded.parameters(), strict=True))


def test_truth_of_a_clip_is_that_of_its_frames() -> None:
    """The steps are the change of the centroid, the speed that of a frame of the clip, also played backwards."""
    source = draw_videos(5, 12)
    clips = source.clips(torch.arange(12), np.random.default_rng(0))
    weight = clips.video_BTHW.double()
    place = torch.arange(64.0).double()
    centre_BT2 = torch.stack([(weight.sum(2) * place).sum(2), (weight.sum(3) * place).sum(2)], -1)
    centre_BT2 = centre_BT2 / weight.sum((2, 3))[..., None]
    steps_B22 = torch.stack([centre_BT2[:, 1] - centre_BT2[:, 0], centre_BT2[:, -1] - centre_BT2[:, -2]], 1)
    cosine = torch.nn.functional.cosine_similarity(steps_B22, clips.steps_B4.view(-1, 2, 2).double(), dim=-1)
    assert (cosine > 0.99).all()
    straight = (steps_B22[:, 0].norm(dim=1) - clips.speed_B).abs() < 0.1
    assert straight.sum() > 9  # a clip may begin in the very step that bounces


def test_training_on_the_held_out_digits_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held-out"):
        train_digits3d(seed=HELD_OUT_SEED, videos=4)
    with pytest.raises(CheckpointError, match="no such weight file"):
        Digits3d.load(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(SHIPPED.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        Digits3d.load(damaged)


def test_other_sizes_are_resampled_between_pixels_and_frames_kept() -> None:
    """Twice the size with blocks whose mean is the pixel: half-way between pixels lies that mean."""
    small = torch.randint(2, 254, (1, 16, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large[:, :, ::2, ::2] += 2
    large[:, :, 1::2, 1::2] -= 2
    network = Digits3d.load()
    torch.testing.assert_close(network.features(large), network.features(small), rtol=1e-4, atol=1e-4)
