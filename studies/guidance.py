"""Study: class-conditional guidance improves fvd[digits3d] up to a point (paper sections 5 and 6).

    python -m studies.guidance --model demo         (the shipped model; no training)
    python -m studies.guidance --source digits      (arms of 'ctf-class')

Clips of 16 frames are made from a class alone, with guidance scales from 1 (none) to 9; clip k has the same class and
seed at every scale. That some scale is better than none, and some better than the largest, are comparisons of several:
their intervals are widened for their number. The share of frames that show the class is reported beside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from magi.cli.options import check_device
from magi.sampling.pipeline import MagiPipeline
from magi.training.parallelize import resolve_device
from studies.commands import command, command_line, options_of
from studies.measures import FVD, GUIDANCE_SCALES, Measures, fvd, guided_measures, labels_of, real_measures
from studies.models import file_name, fingerprint, kept_or_made
from studies.results import (
    COLOURS,
    REAL_COLOUR,
    Outcome,
    figure_of,
    real_scores,
    training_notes,
    training_settings,
    write_outcome,
)
from studies.running import StudyOptions, check, check_writable, gathered
from studies.sources import prepare_held_out, source
from studies.statistics import Judged, Statement, Verdict, all_of, any_of, effect_of, judge, relative, widened
from studies.variants import ARMS, GUIDED_ARM

LEAST_CLIPS = 80
"""Above the 64 dimensions of the features."""


@dataclass(frozen=True)
class GuidanceOptions(StudyOptions):
    """Make clips of every class at several guidance scales."""

    seeds: int = 1
    """trainings of the arm"""
    model: str = ""
    """a finished class-conditional model of the digits instead of arms: demo, a run, an export or a hub id"""
    count: int = 256
    """clips that a finished model makes at every scale"""
    scales: tuple[float, ...] = GUIDANCE_SCALES
    """guidance scales of a finished model; 1 is none and must be among them"""


@dataclass(frozen=True)
class Guided:
    """Measures at every scale, a set a seed, and of real clips."""

    scales: tuple[float, ...]
    made: list[Measures]
    real: Measures

    def features(self, seed: int, scale: float) -> Tensor:
        """``digits3d`` (B, D) at a scale."""
        return self.made[seed][f"digits3d_guidance_{scale:g}"]


def of_model(options: GuidanceOptions) -> tuple[Guided, dict[str, Any]] | None:
    """A finished model's clips, and what the result says of it; None after a dry run."""
    check_device(options.device)
    _check_model_options(options)
    pipe = MagiPipeline.from_pretrained(options.model, resolve_device(options.device))
    if not pipe.config.model.classes:
        raise ValueError(f"--model {options.model} knows no classes, so there is nothing to guide; name another")
    place, mark = source("digits", options.out), fingerprint(pipe)
    folder = options.out / "models"
    paths = {
        scale: folder / f"guidance-{file_name(options.model)}-{options.count}-{scale:g}.safetensors"
        for scale in options.scales
    }
    missing = sum(not path.is_file() for path in paths.values())
    print(f"to generate: {missing} x {options.count} clips of 16 frames with '{options.model}'", flush=True)
    if options.dry_run:
        return None
    check_writable(options.results)
    prepare_held_out(place)
    labels, tensors = labels_of(place, options.count), dict[str, Tensor]()
    for scale, path in paths.items():
        made = kept_or_made(path, f"{mark} guidance {scale:g}", _maker(pipe, labels, scale, options.device))
        tensors |= made.tensors
        print(f"guidance {scale:g}: done", flush=True)
    settings = {"model": options.model, "weights": mark, "clips": options.count, "scales": list(options.scales)}
    return Guided(options.scales, [Measures(tensors)], real_measures(place, place.folder, options.device)), settings


def _maker(pipe: MagiPipeline, labels: list[int], scale: float, device: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: guided_measures(pipe, labels, scale, device)


def _check_model_options(options: GuidanceOptions) -> None:
    if options.source != "digits":
        raise ValueError(f"--model {options.model} makes digits; leave --source out")
    held_out = source("digits", options.out).held_out_videos // 2
    if not LEAST_CLIPS <= options.count <= held_out:
        raise ValueError(f"--count {options.count}: expected {LEAST_CLIPS} to {held_out}")
    if 1.0 not in options.scales or len(set(options.scales)) < 3 or min(options.scales) < 1:
        raise ValueError("--scales: expected at least three, none below 1, and 1 among them")


def of_arms(options: GuidanceOptions) -> tuple[Guided, dict[str, Any]] | None:
    """Clips of the arms 'ctf-class'; None after a dry run."""
    if options.source != "digits":
        raise ValueError(f"--source {options.source} has no classes to guide; use digits")
    arms = gathered(options, [GUIDED_ARM])
    if arms is None:
        return None
    settings = training_settings(options.source, options.seeds, options.budget, {GUIDED_ARM: ARMS[GUIDED_ARM]})
    return Guided(GUIDANCE_SCALES, arms.by_name[GUIDED_ARM], arms.real), settings


def judged(found: Guided) -> tuple[list[Judged], Verdict]:
    """Every scale against none, and the largest against every other but none; and what follows for the claim."""
    largest, level = max(found.scales), widened(len(found.scales) - 1)
    others = [scale for scale in sorted(found.scales) if scale not in (1.0, largest)]
    better = [_compared(found, scale, 1.0, level) for scale in [*others, largest]]
    worse = [_compared(found, scale, largest, level) for scale in others]
    verdict = all_of([any_of(part.verdict for part in better), any_of(part.verdict for part in worse)])
    return [*better, *worse], verdict


def _compared(found: Guided, scale: float, reference: float, level: float) -> Judged:
    """Whether ``scale`` scores lower than ``reference``."""

    def statistic(seed: int) -> Callable[[Tensor], float]:
        one_BD, other_BD = found.features(seed, scale), found.features(seed, reference)
        real_BD = found.real["digits3d"]
        return lambda picked_N: relative(fvd(one_BD[picked_N], real_BD), fvd(other_BD[picked_N], real_BD))

    text = f"guidance {scale:g} better than {reference:g}"
    statement = Statement(text, f"relative change of {FVD}", None, 0.0)
    clips = len(found.features(0, scale))
    return judge(statement, effect_of([statistic(seed) for seed in range(len(found.made))], clips, level))


def scores(found: Guided) -> dict[str, dict[str, list[float]]]:
    """Scale -> distance and share of frames that show the class, a list over seeds."""
    return {
        f"{scale:g}": {
            FVD: [fvd(found.features(seed, scale), found.real["digits3d"]) for seed in range(len(found.made))],
            "class_seen": [float(one[f"class_guidance_{scale:g}"].mean()) for one in found.made],
        }
        for scale in sorted(found.scales)
    }


def draw(values: dict[str, dict[str, list[float]]], floor: float) -> Figure:
    """Distance and class against the scale; dots are seeds."""
    figure = figure_of(10, 4)
    scales = [float(scale) for scale in values]
    for axes, name, colour in zip(figure.subplots(1, 2), (FVD, "class_seen"), COLOURS, strict=False):
        rows = [values[scale][name] for scale in values]
        axes.plot(scales, [sum(row) / len(row) for row in rows], "-", color=colour)
        for seed in range(len(rows[0])):
            axes.plot(scales, [row[seed] for row in rows], "o", color=colour)
        axes.set_xlabel("guidance scale (1: none)")
        axes.set_title(name if name == FVD else "frames that show the class (share)", fontsize=11)
        axes.set_ylim(bottom=0)
        if name == FVD:
            axes.axhline(floor, color=REAL_COLOUR, linestyle="--", linewidth=1, label="real against real")
            axes.legend(frameon=False)
    return figure


def study(options: GuidanceOptions) -> Path | None:
    """Generate, judge and write the result; None after a dry run."""
    check(options)
    read = of_model(options) if options.model else of_arms(options)
    if read is None:
        return None
    found, settings = read
    (parts, verdict), values, real = judged(found), scores(found), real_scores(found.real)
    if options.model:
        notes = ["one finished model: intervals are over clips"]
    else:
        notes = training_notes(options.seeds, options.budget, real)
    variant = file_name(options.model) if options.model else options.variant
    settings = {"command": command_line("guidance", options)} | settings
    outcome = Outcome("guidance", variant, verdict, parts, {"scales": values, "real": real}, settings, notes)
    return write_outcome(outcome, draw(values, real["floor"][FVD]), options.results)


def main() -> None:
    """The study that the command line asks for."""
    study(options_of(GuidanceOptions, "studies.guidance"))


if __name__ == "__main__":
    command(main)
