"""What every study does around its own question: options, what it will cost, the arms that are missing.

Arms are kept under --out, so a study that was stopped continues, and one that needs arms of another finds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from magi.cli.options import Device, check_device
from magi.errors import DataError
from magi.training.parallelize import resolve_device
from studies.cost import cost
from studies.measures import Measures, real_measures
from studies.processes import run_all
from studies.sources import Source, SourceName, prepare, source
from studies.variants import Arm, Budget, load_measures


@dataclass(frozen=True)
class StudyOptions:
    """What all studies that train are told."""

    source: SourceName = "digits"
    """which videos: digits (built in) or pendulum (recorded with Gymnasium)"""
    out: Path = Path("build/studies")
    """folder of all arms, shared by the studies"""
    results: Path = Path("results/studies")
    """folder of the result's JSON and picture"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    jobs: int = 1
    """arms trained side by side"""
    seeds: int = 3
    """trainings of every arm"""
    budget: Budget = field(default_factory=Budget)
    dry_run: bool = False
    """print what it will cost, and stop"""

    @property
    def variant(self) -> str:
        """Names the result: the videos and the budget, so that one of another budget is another file."""
        return f"{self.source}-{self.budget.name}"


@dataclass(frozen=True)
class Arms:
    """Measures of every arm by name, a list over seeds, and those of real clips."""

    source: Source
    by_name: dict[str, list[Measures]]
    real: Measures


def gathered(options: StudyOptions, names: Sequence[str]) -> Arms | None:
    """The arms of a study, those that are missing trained first; None after a dry run, or errors of one line."""
    check(options)
    place = source(options.source, options.out)
    arms = [Arm(name, options.source, seed, options.budget) for seed in range(options.seeds) for name in names]
    missing = [arm for arm in arms if load_measures(arm, arm.folder(options.out)) is None]
    print(cost(place, arms, missing, options.out, resolve_device(options.device), options.jobs), flush=True)
    if options.dry_run:
        return None
    check_writable(options.results)
    if missing:
        prepare(place, options.device)
    run_all([_command(arm, options) for arm in missing], options.jobs)
    by_name: dict[str, list[Measures]] = {name: [] for name in names}
    for arm in arms:
        measures = load_measures(arm, arm.folder(options.out))
        if measures is None:
            raise DataError(f"{arm.folder(options.out)}: no measures after its run; start the study again")
        by_name[arm.name].append(measures)
    return Arms(place, by_name, real_measures(place, place.folder, options.device))


def check(options: StudyOptions) -> None:
    """``ValueError`` for options that cannot be."""
    for name, value in (("seeds", options.seeds), ("jobs", options.jobs)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected at least 1")
    for name, value in (("steps", options.budget.steps), ("batch", options.budget.batch)):
        if value < 1:
            raise ValueError(f"--budget.{name} {value}: expected at least 1")
    check_device(options.device)


def check_writable(folder: Path) -> None:
    """``ValueError`` where nothing can be written into ``folder``: before hours of training, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--results {folder}: cannot be written to ({error.strerror}); name another folder") from None


def _command(arm: Arm, options: StudyOptions) -> list[object]:
    budget = arm.budget
    words: list[object] = ["-m", "studies.variants", arm.name, "--source", arm.source, "--seed", arm.seed]
    words += ["--out", options.out, "--device", options.device]
    words += ["--budget.steps", budget.steps, "--budget.batch", budget.batch, "--budget.size", budget.size]
    return words
