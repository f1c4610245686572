"""The samples of a protocol: N clips of a model on disk, none missing, none twice, by any number of workers.

Sample k is generated with a seed that depends on (run seed, k) alone, so it does not matter who generates it, in which
batch and after how many interruptions. Samples lie in shards of 32, lossless (uint8 safetensors); worker i of n
generates the shards k with k mod n = i and needs no coordination. A shard appears whole or not at all and names
everything that its samples depend on; a shard of other settings is not used. Knows no networks and no scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import magi
from magi.data.actions import video_track
from magi.errors import DataError
from magi.evaluation.protocol.card import hash_of
from magi.evaluation.protocol.clip_table import ClipRow
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.real_clips import to_score_size
from magi.evaluation.protocol.result import ModelDescription
from magi.sampling.pipeline import MagiPipeline
from magi.seeding import integer, seed_of
from magi.weights import weights_hash, write_tensors

SHARD = 32
_LABEL_KEY = 21
_SEEDS = 2**32  # those that the sampler takes


def sample_seed(run_seed: int, number: int) -> int:
    """Seed of sample ``number``: a pure function of both, different for all samples of a run."""
    return (seed_of("samples", run_seed) + number) % _SEEDS


def uniform_label(run_seed: int, number: int, classes: int) -> int:
    """Class of sample ``number`` under uniform labels: a pure function of its arguments."""
    return integer(0, classes - 1, run_seed, number, _LABEL_KEY)


def describe(model: MagiPipeline) -> ModelDescription:
    """What a model's samples depend on."""
    key = hash_of([model.config.model.model_dump(mode="json"), weights_hash(model.model.state_dict())])
    return ModelDescription(f"magi-{key[:16]}", model.vae.id, model.config.sampling.model_dump(mode="json"))


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


def sample_plan(evaluation: Evaluation, name: str) -> SamplePlan:
    """Where the samples of the model called ``name`` lie; sample k belongs to row k of ``evaluation.predicted``."""
    depends_on = {
        "magi": magi.__version__,
        "model": asdict(describe(evaluation.models[name])),
        "protocol": evaluation.protocol.model_dump(mode="json"),
        "table": evaluation.table.hash,
        "seed": evaluation.seed,
    }
    return SamplePlan(evaluation.out / "samples" / name, hash_of(depends_on), len(evaluation.predicted))


def generate_samples(evaluation: Evaluation, worker: tuple[int, int] = (0, 1)) -> bool:
    """Generate this worker's samples of every model; whether all samples of all models are there now.

    ``ValueError`` where model and protocol do not fit together.
    """
    plans = [_generate_shards(evaluation, name, worker) for name in evaluation.models]
    # Only now: another worker may have finished its samples of the first model while this one was at the last.
    return not any(plan.missing() for plan in plans)


def _generate_shards(evaluation: Evaluation, name: str, worker: tuple[int, int]) -> SamplePlan:
    """Generate this worker's shards of a model that are not there yet."""
    plan = sample_plan(evaluation, name)
    mine = [shard for shard in plan.missing() if shard % worker[1] == worker[0]]
    total, done = sum(len(plan.numbers(shard)) for shard in mine) * evaluation.protocol.frames, 0

    def on_frame(clips: int) -> None:
        nonlocal done
        done += clips
        evaluation.on_progress(f"{name}: generating frames", done, total)

    generator = _Generator(evaluation, evaluation.models[name])
    write_shards(plan, mine, evaluation.batch, generator.frames, on_frame)
    return plan


def write_shards(
    plan: SamplePlan,
    shards: Sequence[int],
    batch: int,
    frames: Callable[[range], Iterator[Tensor]],
    on_frame: Callable[[int], None],
) -> None:
    """Write shards of a plan, whose samples, by their numbers, ``frames`` makes as frames_BHWC uint8 on the CPU.

    ``on_frame`` is called with the samples of a batch that have one more frame.
    """
    for shard in shards:
        videos, numbers = [], plan.numbers(shard)
        for start in range(numbers.start, numbers.stop, batch):
            part, made = range(start, min(start + batch, numbers.stop)), []
            for frame_BHWC in frames(part):
                made.append(frame_BHWC)
                on_frame(len(part))
            videos.append(torch.stack(made, dim=1))
        tensors = {"video_BTHWC": torch.cat(videos), "numbers": torch.tensor(list(numbers))}
        write_tensors(plan.path(shard), tensors, {"key": plan.key})


def read_samples(evaluation: Evaluation, plan: SamplePlan, first: int, last: int) -> Iterator[Tensor]:
    """Video_BTHWC of the samples ``first`` up to ``last`` (not included) of a plan, as they are scored."""
    for video_BTHWC in plan.read(first, last, evaluation.batch):
        yield to_score_size(video_BTHWC, evaluation.protocol)


@dataclass(frozen=True)
class _Generator:
    """Generates samples by their numbers."""

    evaluation: Evaluation
    model: MagiPipeline

    def frames(self, numbers: range) -> Iterator[Tensor]:
        """Frames_BHWC uint8 of the samples on the CPU, those of the context included."""
        protocol, context_BTHWC = self.evaluation.protocol, self._context(numbers)
        stream = self.model.stream(
            frames=protocol.frames,
            context=context_BTHWC,
            labels=self._labels(numbers),
            interval=protocol.interval,
            seeds=[sample_seed(self.evaluation.seed, number) for number in numbers],
            actions=self._actions(numbers),
        )
        if context_BTHWC is not None:
            yield from self._shown_context(context_BTHWC).unbind(1)
        for frame_BHWC in stream:
            yield frame_BHWC.cpu()

    def _shown_context(self, context_BTHWC: Tensor) -> Tensor:
        """The context frames of a sample: the real ones, or what the autoencoder makes of them."""
        if self.evaluation.protocol.context == "ground_truth":
            return context_BTHWC
        device = next(self.model.model.parameters()).device
        return self.model.vae.decode(self.model.vae.encode(context_BTHWC.to(device))).cpu()

    def _context(self, numbers: range) -> Tensor | None:
        frames = self.evaluation.protocol.context_frames
        if not frames:
            return None
        size = self.model.config.data.height, self.model.config.data.width
        return torch.stack(
            [self.evaluation.clips.read(self.evaluation.predicted[number], size, frames) for number in numbers]
        )

    def _actions(self, numbers: range) -> Tensor | None:
        """Of a world or game the recorded actions of the clips, (B, T, A); None of other videos."""
        protocol, actions = self.evaluation.protocol, self.model.config.model.actions
        if not protocol.plays_actions:
            return None
        if not actions:
            raise ValueError(f"{protocol.name} plays actions, but this model has none; use a model with actions")
        index, rows = self.evaluation.clips.index, [self.evaluation.predicted[number] for number in numbers]
        tracks = [video_track(index.root / row.video, actions, protocol.frames) for row in rows]
        return torch.from_numpy(np.stack(tracks))

    def _labels(self, numbers: range) -> list[int | str | None] | None:
        classes = self.model.config.model.classes
        if self.evaluation.protocol.labels == "none":
            return None
        if not classes:
            raise ValueError(
                f"{self.evaluation.protocol.name} tells the class, but this model has none; use a model with classes"
            )
        if self.evaluation.protocol.labels == "uniform":
            return [uniform_label(self.evaluation.seed, number, classes) for number in numbers]
        return [self._real_label(self.evaluation.predicted[number]) for number in numbers]

    def _real_label(self, row: ClipRow) -> int | str:
        """By name where the model knows names, since numbers depend on which folders are there."""
        if row.label < 0:
            raise ValueError(
                f"{row.video}: has no class, {self.evaluation.protocol.name} needs one; put videos in class folders"
            )
        return self.evaluation.clips.index.classes[row.label] if self.model.classes is not None else row.label
