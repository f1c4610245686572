"""An evaluation of prompts: the sets of clips that it asks models for, each on disk, none missing, none twice.

A clip's seed depends on (run seed, number) alone. A changed prompt, no prompt, another guidance and a prompt that turns
in mid-video have the seeds of the prompts that they are compared with. Knows no oracles and no scores.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import magi
from magi.data.captioned_digits import FRAMES, STRAIGHT_FRAMES, Combinations
from magi.evaluation.protocol.card import hash_of
from magi.evaluation.protocol.evaluation import REAL, RECONSTRUCTED, OnProgress, no_progress
from magi.evaluation.protocol.samples import SamplePlan, describe, sample_seed, write_shards
from magi.evaluation.text.clip_score import ImageTextScore
from magi.evaluation.text.oracles import READ_FRAMES
from magi.evaluation.text.prompts import AskedClip, Swap, draw_asked, swaps, turns
from magi.sampling.pipeline import MagiPipeline
from magi.vae.contract import VideoAutoencoder

SETS: tuple[Combinations, ...] = ("seen", "held-out")
SWAPPED, WITHOUT, EMPTY = 64, 128, 16
"""Of the prompts of seen combinations, those that are changed, asked without a prompt, and with an empty one."""
TURNED = 64
"""Those whose prompt changes after ``READ_FRAMES`` frames, for as many more."""
assert READ_FRAMES <= STRAIGHT_FRAMES, "the way back must be free"
TURNS, WAYS, UNCHANGED = ("direction", "brightness"), ("keep", "observe_anew"), "unchanged"
"""What changes; what becomes of the frames in view (``sampling.prompt_change``); the same clips without a change."""
PROMPT_SEED = 71_003  # of what is asked: not that of videos to train on


@dataclass(frozen=True)
class ClipSet:
    """Clips to generate: a prompt each, or none; the numbers that seeds come from; changes of the model's settings.

    ``turned`` are the prompts from frame ``READ_FRAMES`` on.
    """

    name: str
    prompts: tuple[str, ...] | None
    numbers: tuple[int, ...]
    frames: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    turned: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TextEvaluation:
    """What is asked of which models, half of it of held-out combinations; ``ValueError`` for what cannot be."""

    models: Mapping[str, MagiPipeline]
    out: Path
    prompts: int = 512
    guidance: tuple[float, ...] = ()
    frames: int = FRAMES
    seed: int = 0
    batch: int = 16
    on_progress: OnProgress = field(default=no_progress, compare=False)
    clip: ImageTextScore | None = None

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.prompts % 2:
            raise ValueError(f"prompts {self.prompts}: expected an even number, half of held-out combinations")
        if self.clip is not None and self.prompts < 4:
            raise ValueError(f"prompts {self.prompts}: a CLIP score has an interval, for which 4 are needed")
        if self.frames < READ_FRAMES:
            raise ValueError(f"frames {self.frames}: attributes are read from {READ_FRAMES}; ask for as many")
        for name, model in self.models.items():
            if name in (REAL, RECONSTRUCTED):
                raise ValueError(f"a model cannot be called '{name}': the report uses that name")
            if not model.config.model.text_encoder:
                raise ValueError(f"{name}: this model has no text; its prompts cannot be measured")
            data = model.config.data
            if data.height != data.width or data.height != self.size:
                raise ValueError(
                    f"{name} makes {data.height} x {data.width} pixels, expected {self.size} x {self.size}; "
                    "evaluate models of one square size together"
                )
            model.vae.latent_frames(self.frames)  # raises where the autoencoder does not take clips of this length

    @property
    def size(self) -> int:
        """Height and width of all clips."""
        return next(iter(self.models.values())).config.data.height

    @cached_property
    def asked(self) -> dict[str, list[AskedClip]]:
        """The prompts of seen and of held-out combinations."""
        return {name: draw_asked(PROMPT_SEED, self.prompts // 2, name, self.size, self.frames) for name in SETS}

    @cached_property
    def swaps(self) -> list[Swap]:
        """The changed prompts."""
        return swaps(self.asked["seen"][:SWAPPED], PROMPT_SEED)

    @cached_property
    def turn_frames(self) -> int:
        """The fewest frames in which a prompt can change and be read, and which all autoencoders take."""
        lengths = range(2 * READ_FRAMES, 4 * READ_FRAMES)
        return next(frames for frames in lengths if all(_takes(model.vae, frames) for model in self.models.values()))

    def turns(self, name: str) -> list[Swap]:
        """The prompts in which an attribute changes in mid-video."""
        return turns(self.asked["seen"], name)[:TURNED]

    def sets(self) -> list[ClipSet]:
        """All clips that a model is asked for."""
        texts = {name: tuple(clip.prompt for clip in clips) for name, clips in self.asked.items()}
        count = len(texts["seen"])
        few, frames = tuple(range(min(WITHOUT, count))), self.frames
        return [
            ClipSet("seen", texts["seen"], tuple(range(count)), frames),
            ClipSet("held-out", texts["held-out"], tuple(range(count, 2 * count)), frames),
            ClipSet("swaps", tuple(swap.prompt for swap in self.swaps), tuple(one.base for one in self.swaps), frames),
            ClipSet("no prompt", None, few, frames),
            ClipSet("empty prompt", ("",) * len(few[:EMPTY]), few[:EMPTY], frames),
            *(
                ClipSet(guidance_title(scale), texts["seen"][: len(few)], few, frames, {"guidance": scale})
                for scale in self.guidance
            ),
            *self._turn_sets(texts["seen"]),
        ]

    def _turn_sets(self, texts: tuple[str, ...]) -> Iterator[ClipSet]:
        numbers = tuple(turn.base for turn in self.turns(TURNS[0]))
        prompts, frames = tuple(texts[number] for number in numbers), self.turn_frames
        yield ClipSet(UNCHANGED, prompts, numbers, frames)
        for name in TURNS:
            turned = tuple(turn.prompt for turn in self.turns(name))
            for way in WAYS:
                yield ClipSet(turn_title(name, way), prompts, numbers, frames, {"prompt_change": way}, turned)


def _takes(vae: VideoAutoencoder, frames: int) -> bool:
    try:
        vae.latent_frames(frames)
    except ValueError:
        return False
    return True


def guidance_title(scale: float) -> str:
    """Name of the set of clips under a guidance."""
    return f"guidance {scale:g}"


def turn_title(name: str, way: str) -> str:
    """Name of the set of clips in which an attribute changes."""
    return UNCHANGED if way == UNCHANGED else f"other {name}, {way}"


def generate_text_samples(evaluation: TextEvaluation, worker: tuple[int, int] = (0, 1)) -> bool:
    """Generate this worker's clips of every model; whether all clips of all models are there now."""
    plans = []
    for name, model in evaluation.models.items():
        for one in evaluation.sets():
            plan = clip_plan(evaluation, name, one)
            mine = [shard for shard in plan.missing() if shard % worker[1] == worker[0]]
            _write(evaluation, f"{name}, {one.name}: generating frames", model, one, plan, mine)
            plans.append(plan)
    # Only now: another worker may have finished its clips of the first set while this one was at the last.
    return not any(plan.missing() for plan in plans)


def clip_plan(evaluation: TextEvaluation, name: str, clips: ClipSet) -> SamplePlan:
    """Where the clips of a set of the model called ``name`` lie."""
    depends_on = {
        "magi": magi.__version__,
        "model": asdict(describe(evaluation.models[name])),
        "clips": [clips.prompts, clips.numbers, dict(clips.sampling), clips.turned],
        "frames": clips.frames,
        "seed": evaluation.seed,
    }
    return SamplePlan(evaluation.out / "samples" / name, hash_of(depends_on), len(clips.numbers))


def read_clips(evaluation: TextEvaluation, name: str, clips: ClipSet, count: int | None = None) -> NDArray[np.uint8]:
    """Video_BTHWC of the first ``count`` clips of a set, or of all."""
    plan = clip_plan(evaluation, name, clips)
    parts = plan.read(0, plan.count if count is None else min(count, plan.count), evaluation.batch)
    video_BTHWC: NDArray[np.uint8] = torch.cat(list(parts)).numpy()
    return video_BTHWC


def _write(
    evaluation: TextEvaluation, what: str, model: MagiPipeline, clips: ClipSet, plan: SamplePlan, shards: list[int]
) -> None:
    total, done = sum(len(plan.numbers(shard)) for shard in shards) * clips.frames, 0

    def frames(part: range) -> Iterator[Tensor]:
        return model.stream(
            frames=clips.frames,
            prompt=_prompts(clips, part, model.vae.temporal_stride),
            seeds=[sample_seed(evaluation.seed, clips.numbers[number]) for number in part],
            sampling=clips.sampling or None,
        )

    def on_frame(made: int) -> None:
        nonlocal done
        done += made
        evaluation.on_progress(what, done, total)

    write_shards(plan, shards, evaluation.batch, frames, on_frame)


def _prompts(clips: ClipSet, part: range, stride: int) -> list[str] | Callable[[int], list[str]] | None:
    """The prompts of some clips, as a pipeline takes them; a change comes with the latent frame that has its frame."""
    if clips.prompts is None:
        return None
    first = [clips.prompts[number] for number in part]
    if clips.turned is None:
        return first
    then, change = [clips.turned[number] for number in part], -(-READ_FRAMES // stride)
    return lambda number: first if number < change else then
