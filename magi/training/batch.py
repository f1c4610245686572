"""What one training pass takes: clips, their conditions and their corruption, stacked inside the loader's workers.

It knows what a dataset yields (``Clip`` or ``LatentClip``) and the corruption; no model, device or process.
"""

import hashlib
import multiprocessing
import resource
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from magi.config import ModelConfig, TrainingConfig
from magi.data.actions import pooled
from magi.data.clips import Clip, ClipDataset
from magi.errors import DataError
from magi.latents.dataset import LatentClip, LatentDataset
from magi.model.conditioning import Conditions, action_rows
from magi.model.noise_injection import noise_level
from magi.text.bytes import byte_text
from magi.text.encoder import FrozenChoice
from magi.text.states import TextStates
from magi.training.batch_sampler import StepBatchSampler, step_samples
from magi.training.corruption import Corruption, TokenShape, draw_corruption, masked_tokens

# Open files of a training, and of a worker: each tensor of the batches that it has ahead is one.
_FILES, _FILES_A_WORKER = 64, 40


class Clips(Protocol):
    """A dataset: from a sample number to a clip, a pure function."""

    def __getitem__(self, sample: int, /) -> Clip | LatentClip: ...


def data_identity(clips: Clips) -> str | None:
    """Names what sample numbers stand for, so that a resumed run meets the same data; None if that is not known.

    Paths within the folder, sizes, lengths and labels: a folder that was moved or copied is the same data.
    """
    if not isinstance(clips, LatentDataset | ClipDataset):
        return None
    captions = "" if clips.captions is None else f", captions {clips.captions.digest}"
    captions += "" if clips.states is None else f", states of {clips.states.id}"
    if isinstance(clips, LatentDataset):
        return f"{clips.header.videos} encoded videos {clips.header.digest[:16]}{captions}"
    digest = hashlib.sha256()
    for video in clips.index.videos:
        digest.update(f"{video.path}\0{video.bytes}\0{video.frames}\0{video.label}\0".encode(errors="surrogateescape"))
    return f"{len(clips.index.videos)} videos {digest.hexdigest()[:16]}{captions}"


def frozen_choice(clips: Clips) -> FrozenChoice | None:
    """The frozen text encoder whose states the clips have; None where they have none."""
    states = clips.states if isinstance(clips, LatentDataset | ClipDataset) else None
    return states.choice if isinstance(states, TextStates) else None


@dataclass(frozen=True)
class Batch:
    """B clips: ``video_BTHWC`` (uint8) or ``latents_BTCHW``, their conditions and their ``Corruption``.

    ``picked_M`` holds the indices of the M masked tokens in the flattened (B, U, N) tokens: counted here, on the CPU,
    so that no device has to tell its host how many there are. ``step_masked`` counts those of the whole optimizer
    step, over all its micro-batches and processes: what the loss is a mean over.
    """

    samples: tuple[int, ...]
    video_BTHWC: Tensor | None
    latents_BTCHW: Tensor | None
    conditions: Conditions
    masked_BUN: Tensor
    picked_M: Tensor
    step_masked: int
    amplitude_B: Tensor
    noise_BTNC: Tensor
    timestep_RBUN: Tensor
    diffusion_noise_RBUNC: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; ``DataLoader`` looks for this name."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed, conditions=self.conditions.map(function))


def make_batch(
    clips: Sequence[Clip | LatentClip],
    corruptions: Sequence[Corruption],
    model: ModelConfig,
    step_masked: int | None = None,
) -> Batch:
    """Stack clips with their corruption, on the CPU; ``step_masked`` is None where they are a whole step.

    ``ValueError`` for a label that the model has no class for.
    """
    videos = [torch.from_numpy(np.ascontiguousarray(clip.video_THWC)) for clip in clips if isinstance(clip, Clip)]
    latents = [
        torch.from_numpy(np.array(clip.latents_TCHW, np.float32)) for clip in clips if isinstance(clip, LatentClip)
    ]
    amplitude_B = torch.stack([corruption.amplitude for corruption in corruptions])
    if model.teacher_forcing == "masked":
        amplitude_B = torch.zeros_like(amplitude_B)  # no observation frames, so none that could be noisy
    masked_BUN = torch.stack([corruption.masked_UN for corruption in corruptions])
    picked_M = masked_BUN.flatten().nonzero().squeeze(1)
    return Batch(
        samples=tuple(clip.sample for clip in clips),
        video_BTHWC=torch.stack(videos) if videos else None,
        latents_BTCHW=torch.stack(latents) if latents else None,
        conditions=Conditions(
            interval_B=torch.tensor([clip.interval for clip in clips]),
            noise_level_B=noise_level(amplitude_B, model.noise_max, model.noise_levels),
            label_B=_labels(clips, corruptions, model.classes) if model.classes else None,
            action_BA=_actions(clips, corruptions, model) if model.actions else None,
            text_BLE=_text(clips, corruptions, model) if model.text_encoder else None,
        ),
        masked_BUN=masked_BUN,
        picked_M=picked_M,
        step_masked=len(picked_M) if step_masked is None else step_masked,
        amplitude_B=amplitude_B,
        noise_BTNC=torch.stack([corruption.noise_TNC for corruption in corruptions]),
        timestep_RBUN=torch.stack([corruption.timestep_RUN for corruption in corruptions], dim=1),
        diffusion_noise_RBUNC=torch.stack([corruption.diffusion_noise_RUNC for corruption in corruptions], dim=1),
    )


def _labels(clips: Sequence[Clip | LatentClip], corruptions: Sequence[Corruption], classes: int) -> Tensor:
    labels = []
    for clip, corruption in zip(clips, corruptions, strict=True):
        if clip.label is None or not 0 <= clip.label < classes:
            raise ValueError(
                f"model.classes is {classes}, but a clip has label {clip.label}; "
                f"set model.classes to the number of class folders"
            )
        labels.append(classes if corruption.drop_class else clip.label)
    return torch.tensor(labels)


def _actions(clips: Sequence[Clip | LatentClip], corruptions: Sequence[Corruption], model: ModelConfig) -> Tensor:
    """Rows (B, T, A + 1) of the latent frames."""
    rows = []
    for clip, corruption in zip(clips, corruptions, strict=True):
        if clip.actions_TA is None or clip.actions_TA.shape[1] != model.actions:
            found = "no actions" if clip.actions_TA is None else f"actions of {clip.actions_TA.shape[1]} numbers"
            raise ValueError(f"model.actions is {model.actions}, but a clip has {found}")
        rows_TA = torch.from_numpy(pooled(clip.actions_TA, model.frames))
        rows.append(torch.full_like(rows_TA, torch.nan) if corruption.drop_actions else rows_TA)
    return action_rows(torch.stack(rows))


def _text(clips: Sequence[Clip | LatentClip], corruptions: Sequence[Corruption], model: ModelConfig) -> Tensor:
    """Captions as ``magi.model.text`` takes them, longer ones cut; a clip without one has no text."""
    dropped = [corruption.drop_text for corruption in corruptions]
    if model.text_encoder == "bytes":
        captions = ["" if drop else clip.caption or "" for clip, drop in zip(clips, dropped, strict=True)]
        return byte_text(captions, model.text_length, cut=True)
    states = []
    for clip, drop in zip(clips, dropped, strict=True):
        if clip.text_LE is None or clip.text_LE.shape[1] != model.text_width:
            found = "none" if clip.text_LE is None else f"of {clip.text_LE.shape[1]} numbers"
            raise ValueError(f"model.text_width is {model.text_width}, but the states of a clip's caption are {found}")
        given = len(clip.text_LE) and not drop
        states.append(torch.from_numpy(clip.text_LE).float() if given else torch.zeros(1, model.text_width))
    return pad_sequence(states, batch_first=True)


class MicroBatches(Dataset["Batch | Exception"]):
    """From the sample numbers of a micro-batch to its batch; expected errors are values, so that they stay one line."""

    def __init__(self, clips: Clips, training: TrainingConfig, model: ModelConfig, shape: TokenShape) -> None:
        self.clips, self.training, self.model, self.shape = clips, training, model, shape

    def __getitems__(self, samples: list[int]) -> Batch | Exception:
        try:
            clips = [self.clips[sample] for sample in samples]
            corruptions = [draw_corruption(self.training, self.model, self.shape, sample) for sample in samples]
            batch = make_batch(clips, corruptions, self.model, self._step_masked(samples[0]))
        except (DataError, ValueError) as error:
            return error
        return batch if get_worker_info() is None else _shared(batch)

    def _step_masked(self, sample: int) -> int:
        """Masked tokens of the step that a sample belongs to.

        Mask ratios are pure functions of the sample number, so every worker knows those of all processes: nothing is
        exchanged, and no device waits for the number.
        """
        batch = self.training.batch
        return masked_tokens(self.training, self.shape, step_samples(sample // batch, batch))


def _shared(batch: Batch) -> Batch | Exception:
    """The batch in shared memory, as a worker hands it over.

    NOTE: left to the loader it would be put there in a thread of the worker, where what goes wrong is lost and the
    trainer waits without end.
    """
    try:
        return batch._each(Tensor.share_memory_)
    except (RuntimeError, OSError) as error:
        return _no_shared_memory(error)


def _no_shared_memory(error: Exception) -> ValueError:
    return ValueError(
        f"no shared memory left for the batches of data.workers ({' '.join(str(error).split())}): give "
        "--data.workers 0, a smaller --training.micro-batch, or a larger /dev/shm (of containers: --shm-size 2g)"
    )


def _check_shared_memory(workers: int) -> None:
    """``ValueError`` where what a loader talks to its workers through finds no room.

    Tried here, because a loader that fails while it is made prints a traceback of its own when it is thrown away.
    """
    try:
        held = [*(multiprocessing.Queue() for _ in range(workers + 1)), multiprocessing.Event()]
    except OSError as error:
        raise _no_shared_memory(error) from None
    del held


def _allow_open_files(workers: int) -> None:
    """Raise this process's own limit if it is low; ``ValueError`` where the system's does not suffice for workers."""
    needed = _FILES + _FILES_A_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{hard} open files are allowed, {workers} data.workers need {needed}: give --data.workers 0, or raise the "
            "limit (ulimit -n 4096)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _keep(batch: Any) -> Any:
    return batch  # a batch already: the dataset takes all numbers of a micro-batch at once


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the trainer ends its workers; its death they notice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_batches(
    micro_batches: MicroBatches, order: StepBatchSampler, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of ``order``, loaded ahead by ``workers`` processes; errors of a clip are raised here.

    ``ValueError`` where workers have too little shared memory or too few open files.
    """
    if workers:
        _allow_open_files(workers)
        _check_shared_memory(workers)
    loader = DataLoader(
        micro_batches,
        batch_sampler=order,
        collate_fn=_keep,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
        # A generator of its own: the loader draws a seed for its workers, which must not move the global state.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        # NOTE: ended explicitly. With pinned memory the iterator has outlived its last user, and at exit its workers,
        # which ignore signals, were waited for without end. One process has no such method.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
