"""How much an autoencoder loses, what its latents look like, and how fast it goes: clips encoded and decoded.

PSNR and SSIM bound what any model can reach on these latents. The mean and standard deviation of each latent channel
are what training normalises with. Knows no adapter and no model.
"""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from magi.errors import NumericsError
from magi.evaluation.metrics.psnr_ssim import WINDOW, psnr, ssim
from magi.progress import Report
from magi.vae.contract import VideoAutoencoder
from magi.vae.normalization import ChannelStatistics


@dataclass(frozen=True)
class Reconstruction:
    """Figures over all frames of all clips; the mean and standard deviation are of latents as they are drawn."""

    clips: int
    frames: int
    exact_frames: int
    """Frames that came back to the bit; PSNR is over the others."""
    psnr_db: float | None
    """Mean over frames; None where all are exact."""
    worst_psnr_db: float | None
    ssim: float | None
    """Mean over frames; None for frames smaller than its window."""
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    encode_frames_per_second: float
    decode_frames_per_second: float
    peak_megabytes: float
    """Largest memory so far: of the GPU the tensors on it, of a CPU the whole process."""


def measure_reconstruction(
    vae: VideoAutoencoder,
    videos: Iterable[np.ndarray],
    count: int,
    clips_at_a_time: int,
    device: torch.device,
    on_progress: Report = lambda done, total: None,
) -> Reconstruction:
    """Encode and decode the first ``count`` of ``videos`` (video_THWC uint8); ``NumericsError`` numbers a bad clip."""
    statistics, clock = ChannelStatistics(vae.channels), _Clock(device)
    decibels, similarities, done = [], [], 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for video_BTHWC in _batches(islice(videos, count), clips_at_a_time):
        began = clock.now()
        posterior = vae.posterior(video_BTHWC.to(device))
        clock.encode += (encoded := clock.now()) - began
        decoded_BTHWC = vae.decode(posterior.mean_BTCHW)
        clock.decode += clock.now() - encoded
        finite_B = (posterior.mean_BTCHW.isfinite() & posterior.std_BTCHW.isfinite()).flatten(1).all(1)
        if not bool(finite_B.all()):
            raise NumericsError(
                f"clip {done + int(finite_B.int().argmin())}: latents are not finite; check the weights"
            )
        statistics.add(posterior.mean_BTCHW, posterior.std_BTCHW)
        decibels.append(psnr(video_BTHWC, decoded_BTHWC.cpu()).flatten())
        if min(video_BTHWC.shape[2:4]) >= WINDOW:
            similarities.append(ssim(video_BTHWC, decoded_BTHWC.cpu()).flatten())
        on_progress(done := done + len(video_BTHWC), count)
    decibels_N = torch.cat(decibels)
    finite_N, frames = decibels_N[decibels_N.isfinite()], len(decibels_N)
    return Reconstruction(
        clips=done,
        frames=frames,
        exact_frames=frames - len(finite_N),
        psnr_db=finite_N.mean().item() if len(finite_N) else None,
        worst_psnr_db=finite_N.min().item() if len(finite_N) else None,
        ssim=torch.cat(similarities).mean().item() if similarities else None,
        latent_mean=statistics.mean,
        latent_std=statistics.std,
        encode_frames_per_second=frames / clock.encode,
        decode_frames_per_second=frames / clock.decode,
        peak_megabytes=_peak_megabytes(device),
    )


def stream_difference(vae: VideoAutoencoder, latents_BTCHW: Tensor) -> int:
    """Largest difference of a pixel (0..255) between decoding latent by latent and decoding the clip as a whole."""
    streamed_BTHWC = torch.cat(list(vae.decode_stream(latents_BTCHW.split(1, dim=1))), dim=1)
    return int((streamed_BTHWC.int() - vae.decode(latents_BTCHW).int()).abs().max())


def _batches(videos: Iterator[np.ndarray], size: int) -> Iterator[Tensor]:
    while batch := list(islice(videos, size)):
        yield torch.from_numpy(np.stack(batch))


class _Clock:
    """Seconds spent encoding and decoding; a reading waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.encode, self.decode = device, 0.0, 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _peak_megabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
