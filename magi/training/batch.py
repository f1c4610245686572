"""Clips and their draws become one batch, inside the loader's workers.

It knows what a dataset yields (``Clip`` or ``LatentClip``) and the draws; no model, device or process.
"""

import hashlib
import signal
from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from magi.config import Config
from magi.data.clips import Clip, ClipDataset
from magi.errors import DataError
from magi.latents.dataset import LatentClip, LatentDataset
from magi.training.batch_sampler import StepBatchSampler
from magi.training.clip_batch import Batch as Batch
from magi.training.clip_batch import stack_draws
from magi.training.corruption import Corruption, DrawShape, draw_corruption


class Clips(Protocol):
    """A dataset: from a sample number to a clip, a pure function."""

    def __getitem__(self, sample: int, /) -> Clip | LatentClip: ...


def data_identity(clips: Clips) -> str | None:
    """Names what sample numbers stand for, so that a resumed run meets the same data; None if that is not known.

    Paths within the folder, sizes, lengths and labels: a folder that was moved or copied is the same data.
    """
    if isinstance(clips, LatentDataset):
        return f"{clips.header.videos} encoded videos {clips.header.digest[:16]}"
    if not isinstance(clips, ClipDataset):
        return None
    digest = hashlib.sha256()
    for video in clips.index.videos:
        digest.update(f"{video.path}\0{video.bytes}\0{video.frames}\0{video.label}\0".encode(errors="surrogateescape"))
    return f"{len(clips.index.videos)} videos {digest.hexdigest()[:16]}"


def make_batch(clips: list[Clip | LatentClip], draws: list[Corruption], config: Config) -> Batch:
    """Stack clips with their draws; ``ValueError`` for a label that the model has no class for."""
    videos = [torch.from_numpy(np.ascontiguousarray(clip.video_THWC)) for clip in clips if isinstance(clip, Clip)]
    latents = [
        torch.from_numpy(np.array(clip.latents_TCHW, np.float32)) for clip in clips if isinstance(clip, LatentClip)
    ]
    return stack_draws(
        draws,
        config,
        samples=tuple(clip.sample for clip in clips),
        video_BTHWC=torch.stack(videos) if videos else None,
        latents_BTCHW=torch.stack(latents) if latents else None,
        interval_B=torch.tensor([clip.interval for clip in clips]),
        label_B=_labels(clips, draws, config.model.classes) if config.model.classes else None,
    )


def _labels(clips: list[Clip | LatentClip], draws: list[Corruption], classes: int) -> Tensor:
    labels = []
    for clip, draw in zip(clips, draws, strict=True):
        if clip.label is None or not 0 <= clip.label < classes:
            raise ValueError(
                f"model.classes is {classes}, but a clip has label {clip.label}; "
                f"set model.classes to the number of class folders"
            )
        labels.append(classes if draw.drop_class else clip.label)
    return torch.tensor(labels)


class _Batches(Dataset["Batch | Exception"]):
    """From the sample numbers of a micro-batch to a batch; expected errors are values, so that they stay one line."""

    def __init__(self, clips: Clips, config: Config, shape: DrawShape) -> None:
        self.clips, self.config, self.shape = clips, config, shape

    def __getitems__(self, samples: list[int]) -> Batch | Exception:
        try:
            clips = [self.clips[sample] for sample in samples]
            draws = [draw_corruption(self.config.training, self.config.model, self.shape, sample) for sample in samples]
            return make_batch(clips, draws, self.config)
        except (DataError, ValueError) as error:
            return error


def _keep(batch: Any) -> Any:
    return batch  # a batch already: the dataset takes all numbers of a micro-batch at once


def _quiet_worker(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the trainer ends its workers; its death they notice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_batches(
    clips: Clips, config: Config, shape: DrawShape, order: StepBatchSampler, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of ``order``, loaded ahead by ``data.workers`` processes; errors of a clip are raised here."""
    loader = DataLoader(
        _Batches(clips, config, shape),
        batch_sampler=order,
        collate_fn=_keep,
        num_workers=config.data.workers,
        worker_init_fn=_quiet_worker,
        pin_memory=pin,
        # A generator of its own: the loader draws a seed for its workers, which must not move the global state.
        generator=torch.Generator().manual_seed(config.training.seed),
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        # NOTE: said aloud, because with pinned memory the iterator has outlived its last user, and its workers, which
        # ignore signals, were then waited for at exit for ever. One process has no such method.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
