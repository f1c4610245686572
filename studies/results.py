"""The result of a study on disk: a JSON that says how it was had, a picture, and the listing of docs/studies.md.

    python -m studies.results                     (writes the listing from results/studies/*.json)

Knows the shape of a result and no study's question.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import magi
from magi.errors import DataError
from magi.evaluation.moving_digits.digits3d import Digits3d
from magi.files import atomic_write, write_markdown_block
from studies.commands import command, options_of
from studies.measures import FID, FVD, Measures, fid, fvd
from studies.statistics import Judged, Verdict
from studies.variants import FULL_CLIPS, Budget

FORMAT = 1
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REAL_COLOUR = "#444444"
CLAIMS = {
    "ctf_vs_mtf": "CTF's FVD is lower than MTF's (paper: about 23%), per-frame FID about equal",
    "mtf_past": "what MTF loses by is its gap: partial history in training, full history in inference",
    "exposure_bias": "dynamic interval and noise each help, both together are best",
    "drift": "with dynamic interval the change between adjacent frames stays near that of real video",
    "length": "100 and more frames from training on 16, by interpolated positions and by a sliding window",
    "cache": "with the key-value cache time is about linear in the number of frames",
    "guidance": "class-conditional guidance improves FVD up to a point",
}
"""Study -> what the paper says."""


@dataclass(frozen=True)
class Outcome:
    """What a study found: its verdict, the statements it rests on, and every number behind them."""

    study: str
    variant: str
    verdict: Verdict
    judged: Sequence[Judged]
    numbers: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def name(self) -> str:
        """Names the files."""
        return f"{self.study}-{self.variant}"


def write_outcome(outcome: Outcome, figure: Figure, results: Path) -> Path:
    """Write NAME.json and NAME.png into ``results`` and print the verdict; returns the JSON's path."""
    path = results / f"{outcome.name}.json"
    report = {
        "format": FORMAT,
        "study": outcome.study,
        "variant": outcome.variant,
        "claim": CLAIMS[outcome.study],
        "verdict": outcome.verdict,
        "statements": [
            asdict(judged.statement) | {"effect": rounded(asdict(judged.effect)), "verdict": judged.verdict}
            for judged in outcome.judged
        ],
        "notes": list(outcome.notes),
        "settings": dict(outcome.settings),
        "numbers": rounded(dict(outcome.numbers)),
        "versions": {"magi": magi.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "digits3d": Digits3d.load().hash,
    }
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    FigureCanvasAgg(figure)
    with atomic_write(path.with_suffix(".png")) as beside:
        figure.savefig(beside, format="png", dpi=110)
    print("\n".join([*lines_of(report), str(path), str(path.with_suffix(".png"))]), flush=True)
    return path


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """A result in lines of text."""
    lines = [f"{report['study']} ({report['variant']}): {report['claim']}"]
    for part in report["statements"]:
        lines.append(f"  {part['verdict']:<10} {part['text']}: {part['quantity']} {_interval(part['effect'])}")
    lines += [f"  note: {note}" for note in report["notes"]]
    return [*lines, f"  here: {report['verdict']}"]


def _interval(effect: Mapping[str, Any]) -> str:
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


def figure_of(width: float, height: float) -> Figure:
    """An empty picture in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def real_scores(real: Measures) -> dict[str, Any]:
    """What the distances say of real clips: other ones (the floor), reconstructed ones, and spoilt ones."""
    found = {
        name: {
            FVD: fvd(real[f"{name}_digits3d"], real["digits3d"]),
            FID: fid(real[f"{name}_grey_edges"], real["grey_edges"]),
        }
        for name in ("floor", "vae", "shuffled", "frozen", "blurred")
    }
    return {"clips": len(real["digits3d"]), **found}


def training_settings(source: str, seeds: int, budget: Budget, arms: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the arms of a study were trained with."""
    trained = asdict(budget) | {"clips": budget.steps * budget.batch, "short": budget.is_short}
    return {"source": source, "seeds": seeds, "budget": trained, "arms": {name: list(arms[name]) for name in arms}}


def training_notes(seeds: int, budget: Budget, scores: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a result."""
    notes = []
    if budget.is_short:
        clips = budget.steps * budget.batch
        notes.append(f"short training: {clips} clips an arm, the study is meant for {FULL_CLIPS}")
    if seeds == 1:
        notes.append("one seed: the interval says nothing of other trainings")
    blind = [name for name in ("shuffled", "frozen") if scores[name][FVD] < 2 * scores["floor"][FVD]]
    if blind:
        notes.append(f"{FVD} hardly sees real clips with {' and '.join(blind)} frames: it is blind to motion here")
    if scores["blurred"][FID] < 2 * scores["floor"][FID]:
        notes.append(f"{FID} hardly sees that real frames are blurred: it is blind to sharpness here")
    return notes


def listing(results: Path) -> list[str]:
    """What docs/studies.md says of every study: a row each, then every result with its statements and its picture."""
    found = {study: [read_report(path) for path in sorted(results.glob(f"{study}-*.json"))] for study in CLAIMS}
    rows = ["| study | claim of the paper | here |", "|---|---|---|"]
    for study, claim in CLAIMS.items():
        verdicts = [f"{report['variant']}: **{report['verdict']}**, {_held(report)}" for report in found[study]]
        rows.append(f"| `{study}` | {claim} | {'<br>'.join(verdicts) or 'not run'} |")
    return rows + [line for reports in found.values() for report in reports for line in _section(report)]


def _held(report: Mapping[str, Any]) -> str:
    statements = report["statements"]
    return f"{sum(part['verdict'] == 'held' for part in statements)} of {len(statements)} statements held"


def _section(report: Mapping[str, Any]) -> list[str]:
    """A result: how to have it again, each statement with its effect and verdict, what to know, the picture."""
    name = f"{report['study']}-{report['variant']}"
    statements = [
        f"| {part['text']} | {part['quantity']} | {_interval(part['effect'])} | {part['verdict']} |"
        for part in report["statements"]
    ]
    return [
        "",
        f"### {report['study']}, {report['variant']}: {report['verdict']}",
        "",
        f"`{report['settings']['command']}`" + "".join(f"; {note}" for note in report["notes"]) + ".",
        "",
        "| statement | quantity | effect and its interval | here |",
        "|---|---|---|---|",
        *statements,
        "",
        f"![{name}](../results/studies/{name}.png)",
    ]


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


@dataclass(frozen=True)
class ListingOptions:
    """Write the listing of all results between the markers of a Markdown file."""

    file: Annotated[Path, tyro.conf.Positional] = Path("docs/studies.md")
    """the file"""
    results: Path = Path("results/studies")
    """folder of the results"""


def write_listing(file: Path, results: Path) -> None:
    """Replace what is between the markers; ``ValueError`` where they are missing."""
    write_markdown_block(file, "studies", "\n".join(listing(results)))


def main() -> None:
    """Write the listing that the command line names."""
    options = options_of(ListingOptions, "studies.results")
    write_listing(options.file, options.results)
    print(options.file)


if __name__ == "__main__":
    command(main)
