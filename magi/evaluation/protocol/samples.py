"""The samples of a protocol: N clips of a model on disk, none missing, none twice, by any number of workers.

Sample k is made with a seed that depends on (run seed, k) alone, so it does not matter who makes it, in which batch and
after how many interruptions. Samples lie in shards of 32, lossless (uint8 safetensors); worker i of n makes the shards
k with k mod n = i and needs no coordination. A shard appears whole or not at all and names everything that its samples
depend on; a shard made otherwise is not used. Knows no networks and no scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import magi
from magi.errors import DataError
from magi.evaluation.moving_digits.predictions import Progress, describe
from magi.evaluation.protocol.card import hash_of
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.protocols import EvaluationProtocol
from magi.evaluation.protocol.real_clips import RealClips
from magi.files import atomic_write
from magi.sampling.pipeline import MagiPipeline

SHARD = 32
_SEEDS = 2**32
_SPREAD = 1_000_003  # a prime: runs of neighbouring seeds share no sample seeds for as many samples


def sample_seed(run_seed: int, number: int) -> int:
    """Seed of sample ``number``: a pure function of both, different for all samples of a run."""
    return (run_seed * _SPREAD + number) % _SEEDS


def uniform_label(run_seed: int, number: int, classes: int) -> int:
    """Class of sample ``number`` under uniform labels: a pure function of its arguments."""
    return int(np.random.default_rng([run_seed, number, 21]).integers(classes))


@dataclass(frozen=True)
class SamplePlan:
    """What is to lie in ``folder``: ``count`` samples that depend on what ``key`` is the hash of."""

    folder: Path
    key: str
    count: int

    @property
    def shards(self) -> int:
        """Files that hold the samples."""
        return -(-self.count // SHARD)

    def numbers(self, shard: int) -> range:
        """The samples of a shard."""
        return range(shard * SHARD, min((shard + 1) * SHARD, self.count))

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"samples-{self.key[:12]}-{shard:05d}-of-{self.shards:05d}.safetensors"

    def missing(self) -> list[int]:
        """The shards that are not there, or damaged."""
        return [shard for shard in range(self.shards) if not self._is_whole(shard)]

    def _is_whole(self, shard: int) -> bool:
        try:
            with safe_open(self.path(shard), framework="pt") as file:
                numbers = file.get_tensor("numbers").tolist()
                metadata, shape = file.metadata() or {}, file.get_slice("video_BTHWC").get_shape()
        except (OSError, SafetensorError, KeyError):
            return False
        return metadata.get("key") == self.key and numbers == list(self.numbers(shard)) and shape[0] == len(numbers)

    def read(self, first: int, last: int, batch: int) -> Iterator[Tensor]:
        """Video_BTHWC of samples ``first`` up to ``last`` (not included), ``batch`` at a time, in order.

        ``DataError`` where a shard is missing or damaged.
        """
        for start in range(first, last, batch):
            yield torch.stack([self._read_one(number) for number in range(start, min(start + batch, last))])

    def _read_one(self, number: int) -> Tensor:
        path = self.path(number // SHARD)
        try:
            with safe_open(path, framework="pt") as file:
                sample_1THWC: Tensor = file.get_slice("video_BTHWC")[number % SHARD : number % SHARD + 1]
        except (OSError, SafetensorError, KeyError):
            raise DataError(f"{path}: shard missing or damaged; run the same command again to make it") from None
        return sample_1THWC[0]


def sample_plan(
    model: MagiPipeline, protocol: EvaluationProtocol, rows: Sequence[ClipRow], table_hash: str, seed: int, folder: Path
) -> SamplePlan:
    """The plan of a model's samples for ``rows``, the real clips in order; sample k belongs to row k."""
    depends_on = {
        "magi": magi.__version__,
        "model": describe(model),
        "protocol": protocol.model_dump(mode="json"),
        "table": table_hash,
        "seed": seed,
    }
    return SamplePlan(folder, hash_of(depends_on), len(rows))


def generate_samples(
    model: MagiPipeline,
    protocol: EvaluationProtocol,
    clips: RealClips,
    rows: Sequence[ClipRow],
    plan: SamplePlan,
    seed: int,
    batch: int,
    worker: tuple[int, int],
    tell: Progress,
) -> None:
    """Make this worker's shards of ``plan`` that are not there yet; ``tell`` hears (what, samples made, to make).

    ``ValueError`` where model and protocol do not fit together.
    """
    mine = [shard for shard in plan.missing() if shard % worker[1] == worker[0]]
    total, done = sum(len(plan.numbers(shard)) for shard in mine), 0
    maker = _Maker(model, protocol, clips, rows, seed)
    for shard in mine:
        made, numbers = [], plan.numbers(shard)
        for start in range(numbers.start, numbers.stop, batch):
            tell("generating samples", done, total)
            part = range(start, min(start + batch, numbers.stop))
            made.append(maker.make(part))
            done += len(part)
        video_BTHWC = torch.cat(made)
        with atomic_write(plan.path(shard)) as beside:
            tensors = {"video_BTHWC": video_BTHWC.contiguous(), "numbers": torch.tensor(list(numbers))}
            save_file(tensors, beside, metadata={"key": plan.key})
    tell("generating samples", total, total)


@dataclass(frozen=True)
class _Maker:
    """Makes samples by their numbers."""

    model: MagiPipeline
    protocol: EvaluationProtocol
    clips: RealClips
    rows: Sequence[ClipRow]
    seed: int

    def make(self, numbers: range) -> Tensor:
        """Video_BTHWC uint8 of the samples, the context included."""
        protocol = self.protocol
        context_BTHWC = self._context(numbers)
        stream = self.model.stream(
            frames=protocol.frames,
            context=context_BTHWC,
            labels=self._labels(numbers),
            interval=protocol.interval,
            seeds=[sample_seed(self.seed, number) for number in numbers],
        )
        made_BTHWC = torch.stack(list(stream), dim=1)
        if context_BTHWC is None:
            return made_BTHWC
        if protocol.context == "decoded":
            context_BTHWC = reconstruct(self.model, context_BTHWC)
        return torch.cat([context_BTHWC, made_BTHWC], dim=1)

    def _context(self, numbers: range) -> Tensor | None:
        frames = self.protocol.context_frames
        if not frames:
            return None
        size = self.model.config.data.height, self.model.config.data.width
        return torch.stack([self.clips.read(self.rows[number], size, frames) for number in numbers])

    def _labels(self, numbers: range) -> list[int | str | None] | None:
        classes = self.model.config.model.classes
        if self.protocol.labels == "none":
            return None
        if not classes:
            raise ValueError(f"{self.protocol.name} tells the class, but this model has none; use a model with classes")
        if self.protocol.labels == "uniform":
            return [uniform_label(self.seed, number, classes) for number in numbers]
        return [self._real_label(self.rows[number]) for number in numbers]

    def _real_label(self, row: ClipRow) -> int | str:
        """By name where the model knows names, since numbers depend on which folders are there."""
        if row.label < 0:
            raise ValueError(f"{row.video}: has no class, {self.protocol.name} needs one; put videos in class folders")
        return self.clips.index.classes[row.label] if self.model.classes is not None else row.label


def reconstruct(model: MagiPipeline, video_BTHWC: Tensor) -> Tensor:
    """Video_BTHWC through the model's autoencoder and back, on the CPU."""
    device = next(model.model.parameters()).device
    return model.vae.decode(model.vae.encode(video_BTHWC.to(device))).cpu()
