"""Claims: the figures are those of their definitions over every frame of every clip, and a bad clip is named."""

import math
from typing import Self

import numpy as np
import pytest
import torch

from magi.errors import NumericsError
from magi.evaluation.metrics.psnr_ssim import psnr, ssim
from magi.evaluation.vae_reconstruction import measure_reconstruction, stream_difference
from magi.vae.contract import Posterior
from magi.vae.diffusers.small import SmallVae, SmallVaeShape
from magi.vae.pixel import PixelVae
from tests.fakes.tiny_vaes import some_video, tiny_vae

CPU = torch.device("cpu")


class Rough(PixelVae):
    """Loses a known amount of every frame but the darkest, and is uncertain by a known amount."""

    def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
        mean_BTCHW = super().posterior(video_BTHWC).mean_BTCHW
        return Posterior(mean_BTCHW, torch.full_like(mean_BTCHW, 0.25))

    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        video_BTHWC = super().decode(latents_BTCHW)
        return video_BTHWC - (video_BTHWC > 4).to(torch.uint8) * 5

    def to(self, device: torch.device | str) -> Self:
        return self


def test_figures_are_means_over_all_frames_of_all_clips_however_batched() -> None:
    videos = [some_video(3, 16, 16, seed=seed).numpy() for seed in range(5)]
    videos[1][0] = 0  # a frame that comes back to the bit
    seen: list[tuple[int, int]] = []
    vae = Rough(2)
    figures = [
        measure_reconstruction(vae, iter(videos), 5, size, CPU, lambda done, total: seen.append((done, total)))
        for size in (1, 2, 8)
    ]
    assert seen[:5] == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)] and seen[5:] == [(2, 5), (4, 5), (5, 5), (5, 5)]
    video_BTHWC = torch.from_numpy(np.stack(videos))
    made_BTHWC, latents_BTCHW = vae.decode(vae.encode(video_BTHWC)), vae.encode(video_BTHWC)
    decibels_N = psnr(video_BTHWC, made_BTHWC).flatten()
    finite_N = decibels_N[decibels_N.isfinite()]
    assert len(finite_N) == 14
    for result in figures:
        assert (result.clips, result.frames, result.exact_frames) == (5, 15, 1)
        assert result.psnr_db == pytest.approx(finite_N.mean().item())
        assert result.worst_psnr_db == pytest.approx(finite_N.min().item())
        assert result.ssim == pytest.approx(ssim(video_BTHWC, made_BTHWC).mean().item())
        values_CN = latents_BTCHW.movedim(2, 0).flatten(1).double()
        assert result.latent_mean == pytest.approx(values_CN.mean(1).tolist())
        drawn = (values_CN.var(1, correction=0) + 0.25**2).sqrt()
        assert result.latent_std == pytest.approx(drawn.tolist()), "of latents as they are drawn"
        assert min(result.encode_frames_per_second, result.decode_frames_per_second, result.peak_megabytes) > 0


def test_only_as_many_clips_are_read_as_asked_for() -> None:
    def endless() -> object:
        while True:
            yield np.zeros((1, 16, 16, 3), np.uint8)

    assert measure_reconstruction(PixelVae(2), endless(), 3, 2, CPU).clips == 3  # type: ignore[arg-type]


def test_exact_and_tiny_frames_have_no_figure_instead_of_a_wrong_one() -> None:
    result = measure_reconstruction(PixelVae(2), [some_video(2, 8, 8).numpy()], 1, 1, CPU)
    assert (result.psnr_db, result.worst_psnr_db, result.ssim, result.exact_frames) == (None, None, None, 2)


def test_latents_that_are_not_finite_name_the_clip() -> None:
    class Broken(PixelVae):
        def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
            posterior = super().posterior(video_BTHWC)
            posterior.mean_BTCHW[video_BTHWC[:, 0, 0, 0, 0] == 255] = math.nan
            return posterior

    videos = [np.full((1, 8, 8, 3), 255 if number == 3 else 0, np.uint8) for number in range(5)]
    for size in (1, 2, 5):
        with pytest.raises(NumericsError, match=r"^clip 3: latents are not finite"):
            measure_reconstruction(Broken(2), videos, 5, size, CPU)


def test_the_difference_of_a_stream_is_measured_not_assumed() -> None:
    vae = tiny_vae("cosmos")
    latents_BTCHW = vae.encode(some_video(1, 9, 16, 16))
    assert stream_difference(vae, latents_BTCHW) <= 1

    class Forgetful(SmallVae):
        def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
            return super().decode(latents_BTCHW) // 2 if latents_BTCHW.shape[1] == 1 else super().decode(latents_BTCHW)

    forgetful = Forgetful(SmallVaeShape(widths=(8,), patch=2))
    assert stream_difference(forgetful, forgetful.encode(some_video(1, 3, 8, 8))) > 20


def test_encoding_and_decoding_are_timed_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes a second a batch and decoding three; what else is measured is in neither."""
    now = 0.0

    class Slow(PixelVae):
        def posterior(self, video_BTHWC: torch.Tensor) -> Posterior:
            nonlocal now
            now += 1
            return super().posterior(video_BTHWC)

        def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now += 3
            return super().decode(latents_BTCHW)

    def metric(*_: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 10
        return torch.ones(2, 3, dtype=torch.float64)

    monkeypatch.setattr("magi.evaluation.vae_reconstruction.time.perf_counter", lambda: now)
    monkeypatch.setattr("magi.evaluation.vae_reconstruction.psnr", metric)
    videos = [some_video(3, 8, 8, seed=seed).numpy() for seed in range(4)]
    result = measure_reconstruction(Slow(2), videos, 4, 2, CPU)
    assert (result.encode_frames_per_second, result.decode_frames_per_second) == (12 / 2, 12 / 6)
