"""The input pipeline beside a training step: how many cores keep a device busy.

On one core each: reading a clip (decoding a video, or latents on disk) and making it a clip of a batch, with masks and
noise. On the device: encoding a clip of a video, and a training step. Clips are those that the config would train on,
the page cache is warm. It knows no options.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from magi.config import Config, LatentShape
from magi.data.clips import Clip
from magi.latents.dataset import LatentClip
from magi.training.batch import Batch, Clips, MicroBatches
from magi.training.corruption import TokenShape
from magi.training.cost import measure_step
from magi.vae.contract import VideoAutoencoder


@dataclass(frozen=True)
class PipelineSpeed:
    """Clips a second: ``read`` and ``draw`` of a core; ``encode`` (None of latents on disk), ``step`` of the device."""

    read: float
    draw: float
    encode: float | None
    step: float

    @property
    def device(self) -> float:
        """What the device takes: it encodes and trains one after the other."""
        return 1 / ((1 / self.encode if self.encode else 0.0) + 1 / self.step)

    @property
    def cores(self) -> float:
        """Cores that read and draw as many clips."""
        return self.device * (1 / self.read + 1 / self.draw)


class HeldClips:
    """One clip under every sample number."""

    def __init__(self, clip: Clip | LatentClip) -> None:
        self.clip = clip

    def __getitem__(self, sample: int) -> Clip | LatentClip:
        return self.clip


def pipeline_speed(
    config: Config,
    dataset: Clips,
    vae: VideoAutoencoder,
    latent: LatentShape,
    device: torch.device,
    clips: int,
    seconds: float,
) -> PipelineSpeed:
    """Measure each part for about ``seconds``, the step in micro-batches of ``clips`` clips.

    Errors are those of the data set and of training.
    """
    tokens = latent.height * latent.width // config.model.patch_size**2
    shape = TokenShape(latent.frames, tokens, latent.channels * config.model.patch_size**2)
    held = MicroBatches(HeldClips(dataset[0]), config.training, config.model, shape)

    def batch_of(samples: Sequence[int]) -> Batch:
        batch = held.__getitems__(list(samples))
        if isinstance(batch, Exception):
            raise batch
        return batch

    def read(samples: Sequence[int]) -> None:
        for sample in samples:
            dataset[sample]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        read_rate, draw_rate = best_rate(read, clips, seconds), best_rate(batch_of, clips, seconds)
    finally:
        torch.set_num_threads(threads)
    video_BTHWC, encode_rate = batch_of(range(clips)).video_BTHWC, None
    if video_BTHWC is not None:
        video_BTHWC, encoder = video_BTHWC.to(device), vae.to(device)
        with torch.inference_mode():
            encode_rate = best_rate(lambda _: float(encoder.encode(video_BTHWC).sum()), clips, seconds)
    step, _ = measure_step(config, latent, clips, device)
    return PipelineSpeed(read_rate, draw_rate, encode_rate, clips / step)


def best_rate(run: Callable[[Sequence[int]], object], clips: int, seconds: float) -> float:
    """Clips a second of the best of several calls of ``run`` on the same ``clips`` samples, after one that warms up."""
    samples = range(clips)
    run(samples)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        before = time.perf_counter()
        run(samples)
        best = min(best, time.perf_counter() - before)
    return clips / best
