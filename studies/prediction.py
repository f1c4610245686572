"""What the studies of first-frame prediction share: both distances of every arm and seed, and comparisons of two arms.

Knows arms and measures; no study's claim.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from studies.commands import command_line
from studies.measures import FID, FVD, Measures, fid, fvd
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
from studies.running import Arms, StudyOptions
from studies.statistics import Judged, Statement, all_of, effect_of, judge, relative
from studies.variants import ARMS

DISTANCES: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {
    FVD: ("digits3d", fvd),
    FID: ("grey_edges", fid),
}
"""Name of a distance -> the measure it is of, and the function."""


def scores(arms: Arms) -> dict[str, dict[str, list[float]]]:
    """Arm -> distance -> a number a seed."""
    return {
        name: {
            distance: [of(one[measure], arms.real[measure]) for one in seeds]
            for distance, (measure, of) in DISTANCES.items()
        }
        for name, seeds in arms.by_name.items()
    }


def compared(
    arms: Arms, text: str, one: str, other: str, distance: str, low: float | None = None, high: float | None = 0.0
) -> Judged:
    """Whether the relative change of ``distance`` from arm ``other`` to ``one``, paired by seed, is in the range."""
    measure, of = DISTANCES[distance]
    real = arms.real[measure]

    def statistic(first: Measures, second: Measures) -> Callable[[Tensor], float]:
        # Both arms continue the same clips, so the same are drawn for both.
        return lambda picked_N: relative(
            of(first[measure][picked_N], real[picked_N]), of(second[measure][picked_N], real[picked_N])
        )

    pairs = zip(arms.by_name[one], arms.by_name[other], strict=True)
    statement = Statement(text, f"{distance} of {one} less that of {other}, over it", low, high)
    return judge(statement, effect_of([statistic(first, second) for first, second in pairs], len(real)))


def write_prediction(
    options: StudyOptions, study: str, arms: Arms, parts: Sequence[Judged], beside: Sequence[Judged] = ()
) -> Path:
    """Write the result of a study of first-frame prediction whose claim holds where all of its ``parts`` do.

    What is ``beside`` is judged and shown, and the claim does not hang on it.
    """
    values, real = scores(arms), real_scores(arms.real)
    trained = {name: ARMS[name] for name in values if name in ARMS}  # others are of models among these
    settings = training_settings(options.source, options.seeds, options.budget, trained)
    outcome = Outcome(
        study,
        options.variant,
        all_of(part.verdict for part in parts),
        [*parts, *beside],
        {"arms": values, "real": real},
        {"command": command_line(study, options)} | settings,
        training_notes(options.seeds, options.budget, real),
    )
    return write_outcome(outcome, draw(values, real), options.results)


def draw(values: Mapping[str, Mapping[str, Sequence[float]]], real: Mapping[str, Any]) -> Figure:
    """Both distances of every arm: a bar for the mean, dots for seeds, a line for real against real."""
    figure = figure_of(1.6 * len(values) * 2 + 3, 4)
    for axes, distance in zip(figure.subplots(1, 2), DISTANCES, strict=True):
        draw_bars(axes, {name: found[distance] for name, found in values.items()})
        axes.axhline(real["floor"][distance], color=REAL_COLOUR, linestyle="--", linewidth=1, label="real against real")
        axes.axhline(real["vae"][distance], color=REAL_COLOUR, linestyle=":", linewidth=1, label="through autoencoder")
        axes.set_title(f"{distance} (lower is better)", fontsize=11)
        axes.legend(frameon=False)
    return figure


def draw_bars(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """A bar for the mean of each name and a dot for each of its values."""
    for number, (found, colour) in enumerate(zip(values.values(), COLOURS * len(values), strict=False)):
        axes.bar(number, sum(found) / len(found), color=colour, alpha=0.35)
        axes.plot([number] * len(found), found, "o", color=colour)
    axes.set_xticks(range(len(values)), [name.replace("-without-", "\nwithout ") for name in values], fontsize=8)
    axes.set_ylim(bottom=0)
