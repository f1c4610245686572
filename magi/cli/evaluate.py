"""``magi evaluate digits``: models against the exact physics of the built-in videos."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from magi.cli.options import Speed, existing_folder, parse
from magi.progress import Report, progress


@dataclass(frozen=True)
class EvaluateDigitsOptions:
    """Continue held-out built-in videos and measure every frame: class kept, path error, ink (protocol digits-1).

    Writes digits.json, report.html, curves, a contact sheet, an mp4 and a GIF to OUT; finished continuations are kept,
    so the same command again is quick.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL")]
    """models to compare, as NAME=MODEL; the name is what the report calls it"""
    videos: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """held-out videos: magi data digits with a seed that no model was trained on"""
    frames: int = 104
    """frames of a video, those of the context included"""
    context: int = 4
    """context frames of real video that a model is given"""
    count: int = 32
    """clips that are continued"""
    seed: int = 0
    """of the models' draws"""
    batch: int = 8
    """clips continued at a time"""
    labels: bool = False
    """tell the models the class; by default they see it in the context only"""
    speeds: tuple[Speed, ...] = ("full",)
    """speeds of sampling to evaluate every model at (magi sample --speed)"""
    keep_speeds: bool = False
    """keep the figures of the speeds in the folder of their model, for 'magi sample --speed' to print"""
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write the table of figures between the markers of this file"""


def evaluate_digits(words: list[str]) -> None:
    """Evaluate models on held-out digits and say where the report is."""
    options = parse(EvaluateDigitsOptions, "evaluate digits", words)
    sources = model_sources(options.models)
    existing_folder(options.videos)
    from magi.evaluation.moving_digits import protocol as digits
    from magi.evaluation.moving_digits.report import write_results_table
    from magi.sampling.pipeline import MagiPipeline

    models: dict[str, MagiPipeline] = {}
    for name, source in sources.items():
        pipeline = MagiPipeline.from_pretrained(source)
        models |= {_at_speed(name, speed): pipeline.at_speed(speed) for speed in options.speeds}
    with Stages() as tell:
        results = digits.evaluate_digits(
            models,
            options.videos,
            options.out,
            options.frames,
            options.context,
            options.count,
            options.seed,
            options.batch,
            options.labels,
            {name: Path(source) for name, source in sources.items() if (Path(source) / "metrics.jsonl").is_file()},
            tell,
        )
    if options.keep_speeds:
        for name, source in sources.items():
            _keep_speeds(results, name, source, options.speeds)
    if options.readme is not None:
        write_results_table(options.out / "digits.json", options.readme)
    _print(results, options.out)


def _at_speed(name: str, speed: str) -> str:
    """What a model at a speed is called in the report."""
    return name if speed == "full" else f"{name}-{speed}"


def _keep_speeds(results: dict[str, Any], name: str, source: str, speeds: Sequence[str]) -> None:
    """Write speeds.json into the folder of a model: the mean of every oracle over every range, at each speed."""
    from magi.files import atomic_write
    from magi.sampling.pretrained import SPEEDS_FILE, find_model

    kept = {}
    for speed in speeds:
        ranges = results["series"][_at_speed(name, speed)]["ranges"]
        means = {frames: {oracle: value["mean"] for oracle, value in ranges[frames].items()} for frames in ranges}
        kept[speed] = {"protocol": results["protocol"], "clips": results["settings"]["count"], "frames": means}
    with atomic_write(find_model(source) / SPEEDS_FILE) as beside:
        beside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def model_sources(given: Sequence[str]) -> dict[str, str]:
    """Name -> MODEL of the words ``NAME=MODEL``; a ``ValueError`` for other words and for a name given twice."""
    sources: dict[str, str] = {}
    for word in given:
        name, equals, source = word.partition("=")
        if not (name and equals and source):
            raise ValueError(f"--models {word}: expected NAME=MODEL, as in fresh=build/run")
        if name in sources:
            raise ValueError(f"--models: the name '{name}' is given twice")
        sources[name] = source
    return sources


class Stages:
    """Progress of several stages, one after another: ``tell(what, done, total)``; a context."""

    def __init__(self) -> None:
        self.what = ""
        self.stack = ExitStack()
        self.report: Report = lambda done, total: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.stack.close()
            self.what, self.report = what, self.stack.enter_context(progress(what, "done"))
        self.report(done, total)


def _print(results: dict[str, Any], out: Path) -> None:
    """The figures in a few lines, which targets are met, and the files."""
    for name, series in results["series"].items():
        for frames, figures in series["ranges"].items():
            told = "  ".join(f"{oracle} {figure['mean']:.3f}" for oracle, figure in figures.items())
            print(f"{name:<16} frames {frames:<8} {told}")
    for name, judged in results["targets"].items():
        met = sum(target["met"] for target in judged)
        print(f"{name:<16} {met} of {len(judged)} targets met")
    for file in ("comparison.mp4", "comparison.gif", "contact_sheet.png", "report.html", "digits.json"):
        print(out / file)
