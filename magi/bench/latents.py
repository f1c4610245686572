"""How fast clips are read from encoded latents: random video, start and interval, in one process.

The target (docs of the data room) is for the page cache warm, as in an epoch after the first: the clips that are timed
have been read once before. It knows a folder of latents and no training.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from magi.config import DataConfig
from magi.latents.dataset import LatentDataset, read_header

_AT_A_TIME = 20


@dataclass(frozen=True)
class DataSpeed:
    """Clips read in ``seconds``, each of ``bytes_per_clip`` of float32; ``sampled`` from the posterior, or its mean."""

    clips_per_second: float
    clips: int
    seconds: float
    bytes_per_clip: int
    sampled: bool


def clips_per_second(folder: Path, config: DataConfig, seconds: float) -> DataSpeed:
    """The best rate of several rounds of ``LatentDataset.__getitem__`` over about ``seconds``, on one core.

    ``config.sample_posterior`` says whether noise is drawn. Errors are those of ``LatentDataset``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset = LatentDataset(folder, config, seed=0, vae_id=read_header(folder).vae)
        samples = range(max(_AT_A_TIME, min(len(dataset), 50 * _AT_A_TIME)))
        for sample in samples:
            clip = dataset[sample]
        best, clips, began = float("inf"), 0, time.perf_counter()
        while time.perf_counter() - began < seconds or not clips:
            first = clips % (len(samples) - _AT_A_TIME + 1)
            before = time.perf_counter()
            for sample in samples[first : first + _AT_A_TIME]:
                dataset[sample]
            best = min(best, time.perf_counter() - before)
            clips += _AT_A_TIME
        spent = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    return DataSpeed(_AT_A_TIME / best, clips, spent, clip.latents_TCHW.nbytes, config.sample_posterior)
