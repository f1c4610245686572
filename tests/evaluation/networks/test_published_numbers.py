"""Claims: with the published weights, the networks give the numbers that others published.

Each test needs weights imported with ``magi evaluate import-weights`` and is skipped without them. Black against white
clips isolate the network, its epsilon, padding and precision: all clips of a set are equal, so the Frechet distance is
the squared distance of two vectors, whatever the resize, the covariance and the number of clips.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from magi.evaluation.metrics.frechet import distance_of
from magi.evaluation.networks.load import load_i3d, load_lpips
from magi.evaluation.networks.precision import full_precision
from magi.evaluation.networks.published_files import WeightKind, has_weights, stored_weights

NOISE = 10.13808536529541  # fvd-comparison, TensorFlow
NOISE_COUNTS = (128, 256)  # its script and its README disagree
EXAMPLES = os.environ.get("MAGI_LPIPS_EXAMPLES", "")
"""Folder of PerceptualSimilarity's ex_ref.png, ex_p0.png and ex_p1.png."""


def needs(*kinds: WeightKind) -> pytest.MarkDecorator:
    missing = [kind for kind in kinds if not has_weights(kind)]
    return pytest.mark.skipif(bool(missing), reason=f"needs 'magi evaluate import-weights {' '.join(missing)} FILE'")


def black_against_white(features: Callable[[Tensor], Tensor], frames: int) -> float:
    black_BTHWC = torch.zeros(1, frames, 64, 64, 3, dtype=torch.uint8)
    return float((features(black_BTHWC).double() - features(black_BTHWC + 255).double()).square().sum())


def noise_distance(logits: Callable[[Tensor], Tensor], count: int, frames: int = 16, side: int = 224) -> float:
    """Frechet distance of two sets of uniform noise in [0, 1], drawn by numpy's RandomState(1) and (2)."""
    sets = []
    for seed in (1, 2):
        random = np.random.RandomState(seed)  # the published number is of this old generator
        clips = [random.rand(1, frames, side, side, 3).astype(np.float32) for _ in range(count)]
        sets.append(torch.cat([logits(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)) for clip in clips]))
    return distance_of(sets[0], sets[1], allow_singular=True)


def test_black_against_white_is_the_squared_distance_of_the_features() -> None:
    def features(video_BTHWC: Tensor) -> Tensor:
        assert video_BTHWC.shape == (1, 15, 64, 64, 3) and video_BTHWC.dtype == torch.uint8
        return video_BTHWC.float().amax((1, 2, 3)) / 255 * torch.tensor([3.0, 0.0, 4.0])

    assert black_against_white(features, frames=15) == 25.0


def test_noise_is_numpy_s_old_generator_of_seeds_1_and_2() -> None:
    """With the pixels' mean as the only features, the distance is that of two means and covariances."""
    distance = noise_distance(lambda video_BCTHW: video_BCTHW.mean((2, 3, 4)), count=8, frames=2, side=6)
    sets = [np.random.RandomState(seed).rand(8, 2, 6, 6, 3).mean((1, 2, 3)) for seed in (1, 2)]
    means = float(((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum())
    products = np.cov(sets[0].T) @ np.cov(sets[1].T)
    roots = 2 * np.sqrt(np.linalg.eigvals(products).real).sum()
    expected = means + np.trace(np.cov(sets[0].T)) + np.trace(np.cov(sets[1].T)) - roots
    assert distance == pytest.approx(expected, rel=1e-4)


@needs("i3d")
def test_gamma_of_the_published_batch_norms_is_one() -> None:
    gammas = [tensor for name, tensor in stored_weights("i3d").tensors().items() if name.endswith("bn.weight")]
    assert gammas and all(torch.equal(gamma, torch.ones_like(gamma)) for gamma in gammas)


@needs("i3d")
@pytest.mark.parametrize(
    ("frames", "published", "tolerance"),
    [
        (15, 131.0, 2.0),  # "around 131", the example of frechet_video_distance, TensorFlow 1
        (30, 151.39244, 1.0),  # TensorFlow 1.15, README of common_metrics_on_video_quality
    ],
)
def test_i3d_of_black_against_white(frames: int, published: float, tolerance: float) -> None:
    assert black_against_white(load_i3d("google").features, frames) == pytest.approx(published, abs=tolerance)


@needs("i3d")
@pytest.mark.slow
def test_i3d_of_uniform_noise() -> None:
    network = load_i3d().network

    def logits(video_BCTHW: Tensor) -> Tensor:
        with full_precision():
            return network(video_BCTHW)

    assert min(abs(noise_distance(logits, count) - NOISE) for count in NOISE_COUNTS) < 1e-2


@needs("alexnet", "lpips-alex")
@pytest.mark.skipif(not EXAMPLES, reason="needs the images of PerceptualSimilarity: MAGI_LPIPS_EXAMPLES=FOLDER")
@pytest.mark.parametrize(("file", "published"), [("ex_p0.png", 0.722), ("ex_p1.png", 0.138)])
def test_lpips_of_the_published_examples(file: str, published: float) -> None:
    """Printed with three digits, by a variant that averages a map (PerceptualSimilarity, issue 120)."""
    pair = []
    for name in ("ex_ref.png", file):
        with Image.open(Path(EXAMPLES) / name) as image:
            pair.append(torch.from_numpy(np.array(image.convert("RGB")))[None, None])
    assert float(load_lpips("alex").distances(*pair)) == pytest.approx(published, abs=1.5e-3)
