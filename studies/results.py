"""The result of a study: comparisons of variants, a JSON with every number behind the verdict, a picture.

Knows the shape of a result and no study's question.
"""

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import magi
from magi.errors import DataError
from magi.evaluation.moving_digits.digits3d import Digits3d
from magi.evaluation.plots import COLOURS, REAL_COLOUR, figure_of
from magi.files import atomic_write, write_json
from studies.commands import command_line
from studies.measures import FID, FVD, Measures, fid, fvd
from studies.statistics import Judged, Statement, Verdict, all_of, effect_of, judge, relative
from studies.variants import FULL_CLIPS, VARIANTS, StudyOptions, VariantMeasures

FORMAT = 2
CLAIMS = {
    "ctf_vs_mtf": "CTF's FVD is lower than MTF's (paper: about 23%), per-frame FID about equal",
    "mtf_history": "what MTF loses by is its gap: partial history in training, full history in inference",
    "exposure_bias": "dynamic interval and noise each help, both together are best",
    "drift": "with dynamic interval the change between adjacent frames stays near that of real video",
    "length": "100 and more frames from training on 16, by interpolated positions and by a sliding window",
    "kv_cache": "with the key-value cache time is about linear in the number of frames",
    "guidance": "class-conditional guidance improves FVD up to a point",
    "linear_attention": "(left for later) linear attention along time does about as well in the trained length",
}
"""Study -> what the paper says."""


def write_outcome(
    study: str,
    options: Any,
    figure: Figure,
    judged: Sequence[Judged],
    numbers: Mapping[str, Any],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    scale: str = "",
    verdict: Verdict | None = None,
) -> Path:
    """Write STUDY-SCALE.json and .png into ``options.results`` and print the verdict; returns the JSON's path.

    ``judged`` are the statements that the claim rests on: all must be supported, unless a ``verdict`` is given.
    ``numbers`` is every number behind them; ``scale`` is that of the options where none is given.
    """
    scale = scale or options.scale
    path = options.results / f"{study}-{scale}.json"
    report = {
        "format": FORMAT,
        "study": study,
        "scale": scale,
        "claim": CLAIMS[study],
        "verdict": verdict or all_of(part.verdict for part in judged),
        "statements": [
            asdict(part.statement)
            | {"effect": rounded(asdict(part.effect)), "verdict": part.verdict, "missed": part.missed}
            for part in judged
        ],
        "notes": list(notes),
        "settings": {"command": command_line(study, options)} | dict(settings),
        "numbers": rounded(dict(numbers)),
        "versions": {"magi": magi.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "digits3d": Digits3d.load().hash,
    }
    write_json(path, report)
    with atomic_write(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    print("\n".join([*lines_of(report), str(path), str(path.with_suffix(".png"))]), flush=True)
    return path


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """A result in lines of text."""
    lines = [f"{report['study']} ({report['scale']}): {report['claim']}"]
    for part in report["statements"]:
        lines.append(f"  {verdict_of(part):<12} {part['text']}: {part['quantity']} {interval_of(part['effect'])}")
    lines += [f"  note: {note}" for note in report["notes"]]
    return [*lines, f"  here: {report['verdict']}"]


def verdict_of(part: Mapping[str, Any]) -> str:
    """The verdict on a statement, and on which side a supported range was missed."""
    return f"{part['verdict']} ({part['missed']})" if part["missed"] else str(part["verdict"])


def interval_of(effect: Mapping[str, Any]) -> str:
    """An effect with its interval, and how that was found."""
    return f"{effect['value']:.3g} [{effect['low']:.3g}, {effect['high']:.3g}] ({effect['method']})"


def rounded(value: Any) -> Any:
    """Numbers to five digits, inside lists and mappings too."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return value


def real_scores(real: Measures) -> dict[str, Any]:
    """What the distances say of real clips: other ones (the floor), reconstructed ones, and corrupted ones."""
    found = {
        name: {
            FVD: fvd(real[f"{name}_digits3d"], real["digits3d"]),
            FID: fid(real[f"{name}_grey_edges"], real["grey_edges"]),
        }
        for name in ("floor", "vae", "shuffled", "frozen", "blurred")
    }
    return {"clips": len(real["digits3d"]), **found}


def training_settings(options: StudyOptions, names: Iterable[str]) -> dict[str, Any]:
    """What the variants ``names`` of a study were trained with."""
    budget = options.budget
    return {
        "source": options.source,
        "seeds": options.seeds,
        "budget": asdict(budget) | {"clips": budget.steps * budget.batch, "short": budget.is_short},
        "variants": {name: list(VARIANTS[name]) for name in names},
    }


def training_notes(options: StudyOptions, scores: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a result."""
    notes = []
    if options.budget.is_short:
        clips = options.budget.steps * options.budget.batch
        notes.append(f"short training: {clips} clips a run, the study is meant for {FULL_CLIPS}")
    if options.seeds == 1:
        notes.append("one seed: the interval says nothing of other trainings")
    unseen = [name for name in ("shuffled", "frozen") if scores[name][FVD] < 2 * scores["floor"][FVD]]
    if unseen:
        notes.append(
            f"{FVD} hardly sees real clips with {' and '.join(unseen)} frames: it is insensitive to motion here"
        )
    if scores["blurred"][FID] < 2 * scores["floor"][FID]:
        notes.append(f"{FID} hardly sees that real frames are blurred: it is insensitive to sharpness here")
    return notes


def read_report(path: Path) -> dict[str, Any]:
    """The JSON of a result; ``DataError`` for anything else."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = report.get("format") == FORMAT and report["study"] in CLAIMS
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not the result of a study ({type(error).__name__}); run the study again") from None
    if not known:
        raise DataError(f"{path}: not the result of a study (format {FORMAT}); run the study again")
    return report


DISTANCES: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {
    FVD: ("digits3d", fvd),
    FID: ("grey_edges", fid),
}
"""Name of a distance -> the measure it is of, and the function."""


def scores(found: VariantMeasures) -> dict[str, dict[str, list[float]]]:
    """Variant -> distance -> a number a seed."""
    return {
        name: {
            distance: [of(one[measure], found.real[measure]) for one in seeds]
            for distance, (measure, of) in DISTANCES.items()
        }
        for name, seeds in found.by_name.items()
    }


def compared(
    found: VariantMeasures,
    text: str,
    one: str,
    other: str,
    distance: str,
    low: float | None = None,
    high: float | None = 0.0,
) -> Judged:
    """Whether the relative change of ``distance`` from ``other`` to ``one``, paired by seed, is in the range."""
    measure, of = DISTANCES[distance]
    real = found.real[measure]

    def statistic(first: Measures, second: Measures) -> Callable[[Tensor], float]:
        # Both variants continue the same clips, so the same are drawn for both.
        return lambda picked_N: relative(
            of(first[measure][picked_N], real[picked_N]), of(second[measure][picked_N], real[picked_N])
        )

    pairs = zip(found.by_name[one], found.by_name[other], strict=True)
    statement = Statement(text, f"{distance} of {one} less that of {other}, over it", low, high, lower_is_better=True)
    return judge(statement, effect_of([statistic(first, second) for first, second in pairs], len(real)))


def write_trained(
    study: str,
    options: StudyOptions,
    found: VariantMeasures,
    parts: Sequence[Judged],
    others: Sequence[Judged] = (),
    numbers: Mapping[str, Any] | None = None,
    draw: Callable[[Any, Mapping[str, Any]], Figure] | None = None,
) -> Path:
    """Write the result of a study that trains, whose claim is supported where all ``parts`` are.

    The ``others`` are judged and shown, and the claim does not depend on them. ``draw`` gets the ``numbers`` and the
    scores of real clips; without both the distances of every variant are written and drawn.
    """
    real = real_scores(found.real)
    numbers = {"variants": scores(found)} if numbers is None else numbers
    settings = training_settings(options, [name for name in found.by_name if name in VARIANTS])
    figure, verdict = (draw or draw_distances)(numbers, real), all_of(part.verdict for part in parts)
    judged, notes = [*parts, *others], training_notes(options, real)
    return write_outcome(study, options, figure, judged, {**numbers, "real": real}, settings, notes, verdict=verdict)


def draw_distances(numbers: Mapping[str, Any], real: Mapping[str, Any]) -> Figure:
    """Both distances of every variant: a bar for the mean, dots for seeds, a line for real against real."""
    values: dict[str, dict[str, list[float]]] = numbers["variants"]
    figure = figure_of(1.6 * len(values) * 2 + 3, 4)
    for axes, distance in zip(figure.subplots(1, 2), DISTANCES, strict=True):
        for number, (found, colour) in enumerate(zip(values.values(), COLOURS * len(values), strict=False)):
            seeds = found[distance]
            axes.bar(number, sum(seeds) / len(seeds), color=colour, alpha=0.35)
            axes.plot([number] * len(seeds), seeds, "o", color=colour)
        axes.set_xticks(range(len(values)), [name.replace("-without-", "\nwithout ") for name in values], fontsize=8)
        for name, style, label in (("floor", "--", "real against real"), ("vae", ":", "through autoencoder")):
            axes.axhline(real[name][distance], color=REAL_COLOUR, linestyle=style, linewidth=1, label=label)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{distance} (lower is better)", fontsize=11)
        axes.legend(frameon=False)
    return figure
