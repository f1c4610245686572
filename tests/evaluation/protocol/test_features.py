"""What was measured of a set: no clip missing, none twice, and statistics merged from its chunks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from magi.errors import DataError
from magi.evaluation.metrics.frechet import FeatureStatistics
from magi.evaluation.metrics.psnr_ssim import psnr, ssim
from magi.evaluation.protocol.features import CHUNK, FEATURES, IMAGES, FeatureSet, Metrics, feature_set
from tests.fakes.look_alikes import Projection

COUNT = 2 * CHUNK + 3


def test_a_dropped_last_batch_does_not_pass(tmp_path: Path) -> None:
    video = torch.zeros(CHUNK + 3, 9, 8, 8, 3, dtype=torch.uint8)

    def whole(first: int, last: int) -> Any:
        yield from zip(video[first:last].split(4))

    def dropping(first: int, last: int) -> Any:
        yield from ((part,) for part in video[first:last].split(4) if len(part) == 4)

    metrics = Metrics(Projection())
    found = feature_set(metrics, tmp_path / "a", "x", CHUNK + 3, whole, lambda done, total: None)
    assert found.values(FEATURES).shape == (CHUNK + 3, 6)
    with pytest.raises(ValueError, match=r"no clips|were asked for"):
        feature_set(metrics, tmp_path / "b", "x", CHUNK + 3, dropping, lambda done, total: None)


def test_statistics_are_merged_from_chunks_and_every_clip_counts_once(tmp_path: Path) -> None:
    video = torch.randint(0, 256, (COUNT, 9, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    def read(first: int, last: int) -> Any:
        yield from zip(video[first:last].split(8))

    found = feature_set(Metrics(Projection()), tmp_path, "x", COUNT, read, lambda done, total: None)
    for first, last in ((0, COUNT), (10, CHUNK + 1), (CHUNK, CHUNK + 2)):
        merged, whole = found.statistics(first, last), FeatureStatistics.of(found.values(FEATURES)[first:last])
        assert merged.count == last - first and merged.samples == set(range(first, last))
        torch.testing.assert_close(merged.covariance_DD, whole.covariance_DD, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(merged.mean_D, whole.mean_D, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="counted once, but 64 come twice"):
        FeatureSet((found.files[0], *found.files)).statistics(0, COUNT)
    with pytest.raises(DataError, match=rf"holds 64 of clips 0 to {COUNT}"):
        FeatureSet(found.files[:1]).statistics(0, COUNT)
    found.files[1].write_bytes(found.files[0].read_bytes())  # a chunk in another's place is measured anew
    again = feature_set(Metrics(Projection()), tmp_path, "x", COUNT, read, lambda done, total: None)
    assert again.statistics(0, COUNT).count == COUNT


def test_frames_are_measured_of_the_first_clips_of_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole chunks of them; features of all frames of more would fill the disk."""

    class Images:
        name, hash = "mean", "0" * 64

        def frame_features(self, video_BTHWC: torch.Tensor) -> torch.Tensor:
            return video_BTHWC.float().mean((2, 3))

    monkeypatch.setattr("magi.evaluation.protocol.features.IMAGE_CLIPS", CHUNK)
    video = torch.randint(0, 256, (COUNT, 9, 8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    metrics = Metrics(Projection(), Images())
    found = feature_set(metrics, tmp_path, "x", COUNT, lambda *part: zip(video[slice(*part)].split(8)), lambda *_: None)
    assert found.values(FEATURES).shape == (COUNT, 6)
    torch.testing.assert_close(found.values(IMAGES), video[:CHUNK].float().mean((2, 3)))
    torch.testing.assert_close(found.values(IMAGES, 3), video[:CHUNK, 3].float().mean((1, 2)))


def test_pairs_are_compared_after_the_context_by_every_metric(tmp_path: Path) -> None:
    """Generated against true clips, each with its own: SSIM in colour and in grey are two numbers."""

    class Difference:
        name, hash = "difference", "0" * 64

        def distances(self, first_BTHWC: torch.Tensor, second_BTHWC: torch.Tensor) -> torch.Tensor:
            return (second_BTHWC.float() - first_BTHWC.float()).mean((2, 3, 4))

    draw = torch.Generator().manual_seed(2)
    real, made = (torch.randint(0, 256, (6, 9, 12, 12, 3), generator=draw).to(torch.uint8) for _ in range(2))

    def read(first: int, last: int) -> Any:
        return zip(made[first:last].split(4), real[first:last].split(4), strict=True)

    metrics = Metrics(Projection(), distances=(Difference(),), context_frames=5)
    found = feature_set(metrics, tmp_path, "x", 6, read, lambda *_: None)
    later = (real[:, 5:], made[:, 5:])
    for name, expected_BT in {
        "psnr": psnr(*later),
        "ssim": ssim(*later),
        "ssim_grey": ssim(*later, grey=True),
        "difference": Difference().distances(*later),
        "brightness": made.float().mean((2, 3, 4)) / 255,
    }.items():
        torch.testing.assert_close(found.values(name), expected_BT.float(), rtol=1e-4, atol=1e-5)
    assert float((found.values("ssim") - found.values("ssim_grey")).abs().min()) > 1e-4
    assert "difference" in found.names() and "numbers_B" not in found.names()
