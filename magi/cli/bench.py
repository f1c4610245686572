"""``magi bench``: the speed cases of this machine, what moved between two reports, and the table of the README."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from magi.cli.options import Device, check_device, checked, existing_folder, parse
from magi.config import DataConfig

WIDTH = 160  # of the table where the terminal is narrower, or none


@dataclass(frozen=True)
class BenchOptions:
    """Measure speed cases, each against its baselines in the same run; a table, and all figures as JSON in OUT.

    A case is a name or its first parts: 'sample.b1', 'head.step', 'cpu'. Cases for another device are listed as not
    measured. A case without parity with its reference has no number.
    """

    cases: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CASE")] = ()
    """cases to run; none is all"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """JSON to write, after every case anew; default build/bench_DEVICE.json"""
    rounds: int = 5
    """interleaved rounds of a case"""
    minutes: float = 10.0
    """cases that would not end within this are listed as not measured"""
    threads: int = 0
    """threads of a CPU; 0 is all cores"""
    smoke: bool = False
    """tiny shapes on any device: checks that the cases work, measures nothing"""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="OLD NEW")] = None
    """print what moved between two reports, and run nothing"""
    merge: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """write one report of several runs on one machine to OUT, and run nothing; of a case the last number counts"""
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CASE=TEXT")] = ()
    """with --merge, once for every case: what its reader has to know; the table shows it"""
    profile: Annotated[str | None, tyro.conf.arg(metavar="CASE")] = None
    """print the operators that the time of a CPU case goes to, write them to OUT if given, and measure nothing"""
    results: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """print the table of these reports, and run nothing"""
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """also write the table between the 'results:bench' markers of this file ('results:profile' with --profile)"""


def bench(words: list[str]) -> None:
    """Run cases, or read reports."""
    options = parse(BenchOptions, "bench", words)
    if options.rounds < 1 or options.minutes <= 0 or options.threads < 0:
        raise ValueError("--rounds and --minutes must be above 0, --threads not below it")
    if options.compare is not None:
        _compare(*options.compare)
        return
    if options.profile is not None:
        _profile(options, options.profile)
        return
    if options.note and not options.merge:
        raise ValueError("--note is of cases that --merge writes; give both")
    from rich.console import Console

    from magi.bench.report import load_report, markdown, print_table
    from magi.files import write_markdown_block

    if options.merge:
        reports = [_merge(options)]
    else:
        reports = [load_report(path) for path in options.results] or [_run(options)]
    console = Console()
    console.width = max(console.width, WIDTH)
    for report in reports:
        print_table(report, console)
    if options.readme is not None:
        write_markdown_block(options.readme, "bench", markdown(reports))
        print(options.readme)


@dataclass(frozen=True)
class BenchDataOptions:
    """Read random clips from encoded latents on one core, the page cache warm, and tell how many a second.

    The clip is as in training: random video, start and interval, float32, drawn from the posterior; and, for
    comparison, the posterior's mean. Latents of a 3-D autoencoder have the frames that they were encoded with.
    """

    latents: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """folder that `magi encode` wrote"""
    frames: int = 16
    """frames of a clip, where every frame has latents of its own"""
    interval_max: int = 25
    """largest interval, where every frame has latents of its own; 1 is the smallest"""
    seconds: float = 5.0
    """time to measure, twice"""


def bench_data(words: list[str]) -> None:
    """Measure how fast clips are read from latents."""
    options = parse(BenchDataOptions, "bench data", words)
    if not options.seconds > 0:
        raise ValueError(f"--seconds {options.seconds}: expected more than 0")
    existing_folder(options.latents)
    from magi.bench.latents import clips_per_second
    from magi.latents.dataset import read_header

    header = read_header(options.latents)
    config = checked(
        DataConfig.model_construct(
            frames=header.frames if header.by_clips else options.frames,
            height=header.height,
            width=header.width,
            interval_min=header.interval_min if header.by_clips else 1,
            interval_max=header.interval_max if header.by_clips else options.interval_max,
        )
    )
    for sampled in (True, False):
        speed = clips_per_second(
            options.latents, config.model_copy(update={"sample_posterior": sampled}), options.seconds
        )
        name = "drawn from the posterior" if sampled else "its mean"
        print(
            f"{name:<24}  {speed.clips_per_second:,.0f} clips/s at best, {speed.clips / speed.seconds:,.0f} on average "
            f"over {speed.clips:,}; {speed.bytes_per_clip / 1024:,.3g} KiB a clip"
        )


def _run(options: BenchOptions) -> dict[str, Any]:
    check_device(options.device)
    import os

    import torch

    from magi.bench.case import Setting
    from magi.bench.runner import run_suite
    from magi.bench.suite import chosen

    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    setting = Setting(torch.device(name), options.smoke, options.rounds)
    out = options.out or Path("build") / f"bench_{name}.json"
    report = run_suite(chosen(options.cases), setting, out, options.minutes, say=lambda line: print(line, flush=True))
    print(out)
    return report


def _profile(options: BenchOptions, name: str) -> None:
    import torch

    from magi.bench.case import Setting
    from magi.bench.profile import profile_case, profile_report, profile_table
    from magi.bench.runner import write_report
    from magi.bench.suite import CASES, chosen
    from magi.files import write_markdown_block

    chosen([name])  # says what is near a misspelt name
    found = [case for case in CASES if case.name == name]
    if not found:
        raise ValueError(f"--profile {name}: names several cases; give the whole name of one")
    torch.set_num_threads(options.threads or 1)
    profiles = profile_case(found[0], Setting(torch.device("cpu"), options.smoke, options.rounds))
    table = profile_table(found[0], profiles)
    print(table)
    if options.out is not None:
        write_report(profile_report(found[0], profiles), options.out)
    if options.readme is not None:
        write_markdown_block(options.readme, "profile", table)


def _merge(options: BenchOptions) -> dict[str, Any]:
    from magi.bench.report import load_report, merged
    from magi.bench.runner import with_missing, write_report
    from magi.bench.suite import CASES

    if options.out is None:
        raise ValueError("--merge: say with --out which file to write")
    notes = dict(note.partition("=")[::2] for note in options.note)
    if not all(notes.values()):
        raise ValueError(f"--note {' '.join(options.note)}: expected CASE=TEXT")
    report = with_missing(merged({str(path): load_report(path) for path in options.merge}, notes), CASES)
    write_report(report, options.out)
    print(options.out)
    return report


def _compare(old: Path, new: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from magi.bench.report import comparison, load_report

    table = Table(title=f"{old} against {new}")
    for column in ("case", "metric", "old", "new", "new / old"):
        table.add_column(column)
    for row in comparison(load_report(old), load_report(new)):
        table.add_row(*row)
    Console().print(table)
