"""Clips and their draws become one batch, inside the loader's workers.

It knows what a dataset yields (``Clip`` or ``LatentClip``) and the draws; no model, device or process.
"""

import hashlib
import signal
from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from magi.config import Config
from magi.data.clips import Clip, ClipDataset
from magi.data.latents import LatentClip, LatentDataset
from magi.errors import DataError
from magi.model.conditioning import Conditions
from magi.model.noise_injection import noise_level
from magi.training.draws import ClipDraws, DrawShape, draw_clip
from magi.training.order import StepOrder


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


@dataclass(frozen=True)
class Batch:
    """B clips: ``video_BTHWC`` (uint8) or ``latents_BTCHW``, their conditions and their draws (see ``ClipDraws``)."""

    samples: tuple[int, ...]
    video_BTHWC: Tensor | None
    latents_BTCHW: Tensor | None
    interval_B: Tensor
    label_B: Tensor | None
    noise_level_B: Tensor
    masked_BTN: Tensor
    amplitude_B: Tensor
    noise_BTNC: Tensor
    timestep_RBTN: Tensor
    diffusion_noise_RBTNC: Tensor

    @property
    def conditions(self) -> Conditions:
        """What the model is told of the clips."""
        return Conditions(self.interval_B, self.noise_level_B, self.label_B)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; ``DataLoader`` looks for this name."""
        return self._each(Tensor.pin_memory)

    def _each(self, function) -> Self:  # type: ignore[no-untyped-def]
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in moved.items() if isinstance(value, Tensor)})


def make_batch(clips: list[Clip | LatentClip], draws: list[ClipDraws], config: Config) -> Batch:
    """Stack clips with their draws; ``ValueError`` for a label that the model has no class for."""
    videos = [torch.from_numpy(np.ascontiguousarray(clip.video_THWC)) for clip in clips if isinstance(clip, Clip)]
    latents = [
        torch.from_numpy(np.array(clip.latents_TCHW, np.float32)) for clip in clips if isinstance(clip, LatentClip)
    ]
    amplitude_B = torch.stack([draw.amplitude for draw in draws])
    if config.model.teacher_forcing == "masked":
        amplitude_B = torch.zeros_like(amplitude_B)  # no observation frames, so no noise to tell of
    return Batch(
        samples=tuple(clip.sample for clip in clips),
        video_BTHWC=torch.stack(videos) if videos else None,
        latents_BTCHW=torch.stack(latents) if latents else None,
        interval_B=torch.tensor([clip.interval for clip in clips]),
        label_B=_labels(clips, draws, config.model.classes) if config.model.classes else None,
        noise_level_B=noise_level(amplitude_B, config.model.noise_max, config.model.noise_levels),
        masked_BTN=torch.stack([draw.masked_TN for draw in draws]),
        amplitude_B=amplitude_B,
        noise_BTNC=torch.stack([draw.noise_TNC for draw in draws]),
        timestep_RBTN=torch.stack([draw.timestep_RTN for draw in draws], dim=1),
        diffusion_noise_RBTNC=torch.stack([draw.diffusion_noise_RTNC for draw in draws], dim=1),
    )


def _labels(clips: list[Clip | LatentClip], draws: list[ClipDraws], classes: int) -> Tensor:
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
            draws = [draw_clip(self.config.training, self.config.model, self.shape, sample) for sample in samples]
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
    clips: Clips, config: Config, shape: DrawShape, order: StepOrder, pin: bool
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
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
