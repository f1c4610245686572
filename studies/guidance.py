"""Study: class-conditional guidance improves fvd[digits3d] up to a point (paper sections 5 and 6).

    python -m studies.guidance --model demo         (the shipped model; no training)
    python -m studies.guidance --source digits      (runs of 'ctf-class')

Clips of 16 frames are generated from a class alone, with guidance scales from 1 (none) to 9; clip k has the same class
and seed at every scale. That some scale is better than none, and some better than the largest, are comparisons of
several: their intervals are widened for their number. The share of frames that show the class is reported, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from magi.evaluation.plots import COLOURS, REAL_COLOUR, figure_of
from studies.commands import run_command
from studies.measures import (
    FVD,
    GUIDANCE_SCALES,
    Measures,
    fvd,
    guided_measures,
    labels_of,
    load_or_compute,
    real_measures,
)
from studies.results import real_scores, training_notes, training_settings, write_outcome
from studies.sources import source
from studies.statistics import Judged, Statement, Verdict, all_of, any_of, effect_of, judge, relative, widened
from studies.variants import GUIDED, ModelOptions, check_options, load_or_train, open_model

LEAST_CLIPS = 80
"""Above the 64 dimensions of the features."""


@dataclass(frozen=True)
class GuidanceOptions(ModelOptions):
    """Make clips of every class at several guidance scales."""

    count: int = 256
    """clips that a finished model makes at every scale"""
    scales: tuple[float, ...] = GUIDANCE_SCALES
    """guidance scales of a finished model; 1 is none and must be among them"""


@dataclass(frozen=True)
class Guided:
    """Measures at every scale, a set a seed, and of real clips."""

    scales: tuple[float, ...]
    generated: list[Measures]
    real: Measures

    def features(self, seed: int, scale: float) -> Tensor:
        """``digits3d`` (B, D) at a scale."""
        return self.generated[seed][f"digits3d_guidance_{scale:g}"]


def of_model(options: GuidanceOptions) -> tuple[Guided, dict[str, Any]]:
    """A finished model's clips, and the settings that the result records."""
    held_out = source("digits", options.out).held_out_videos // 2
    if not LEAST_CLIPS <= options.count <= held_out:
        raise ValueError(f"--count {options.count}: expected {LEAST_CLIPS} to {held_out}")
    if 1.0 not in options.scales or len(set(options.scales)) < 3 or min(options.scales) < 1:
        raise ValueError("--scales: expected at least three, none below 1, and 1 among them")
    pipe, place, settings = open_model(options, f"{len(options.scales)} x {options.count} clips of 16 frames")
    if not pipe.config.model.classes:
        raise ValueError(f"--model {options.model} knows no classes, so there is nothing to guide; name another")
    labels, tensors = labels_of(place, options.count), dict[str, Tensor]()
    for scale in options.scales:
        name = f"guidance-{Path(options.model).name}-{options.count}-{scale:g}.safetensors"
        work = partial(guided_measures, pipe, labels, scale, options.device)
        tensors |= load_or_compute(options.out / "models" / name, f"{settings['weights']} guidance {scale:g}", work)
        print(f"guidance {scale:g}: done", flush=True)
    settings |= {"clips": options.count, "scales": list(options.scales)}
    return Guided(options.scales, [tensors], real_measures(place, place.folder, options.device)), settings


def of_runs(options: GuidanceOptions) -> tuple[Guided, dict[str, Any]]:
    """Clips of the runs 'ctf-class', and the settings that the result records."""
    if options.source != "digits":
        raise ValueError(f"--source {options.source} has no classes to guide; use digits")
    found = load_or_train(options, [GUIDED])
    return Guided(GUIDANCE_SCALES, found.by_name[GUIDED], found.real), training_settings(options, [GUIDED])


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
    return judge(statement, effect_of([statistic(seed) for seed in range(len(found.generated))], clips, level))


def scores(found: Guided) -> dict[str, dict[str, list[float]]]:
    """Scale -> distance and share of frames that show the class, a list over seeds."""
    return {
        f"{scale:g}": {
            FVD: [fvd(found.features(seed, scale), found.real["digits3d"]) for seed in range(len(found.generated))],
            "class_accuracy": [float(one[f"class_guidance_{scale:g}"].mean()) for one in found.generated],
        }
        for scale in sorted(found.scales)
    }


def draw(values: dict[str, dict[str, list[float]]], floor: float) -> Figure:
    """Distance and class against the scale; dots are seeds."""
    figure = figure_of(10, 4)
    scales = [float(scale) for scale in values]
    for axes, name, colour in zip(figure.subplots(1, 2), (FVD, "class_accuracy"), COLOURS, strict=False):
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


def study(options: GuidanceOptions) -> Path:
    """Generate, judge and write the result."""
    check_options(options)
    found, settings = of_model(options) if options.model else of_runs(options)
    (parts, verdict), values, real = judged(found), scores(found), real_scores(found.real)
    notes = ["one finished model: intervals are over clips"] if options.model else training_notes(options, real)
    numbers, figure = {"scales": values, "real": real}, draw(values, real["floor"][FVD])
    scale = options.result_scale
    return write_outcome("guidance", options, figure, parts, numbers, settings, notes, scale, verdict)


if __name__ == "__main__":
    run_command("guidance", GuidanceOptions, study)
