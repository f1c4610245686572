"""``magi bench``: the speed cases on this machine, and the rate at which clips are read from latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from magi.cli.assemble import autoencoder, open_data
from magi.cli.options import Device, check_device, checked, existing_folder, parse, preset_or_file
from magi.config import DataConfig
from magi.errors import NumericsError

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


def bench(argv: list[str]) -> None:
    """Run cases, print their table and write their JSON."""
    options = parse(BenchOptions, "bench", argv)
    if options.rounds < 1 or options.minutes <= 0 or options.threads < 0:
        raise ValueError("--rounds and --minutes must be above 0, --threads not below it")
    check_device(options.device)
    import os

    import torch
    from rich.console import Console

    from magi.bench.case import Setting
    from magi.bench.report import print_table
    from magi.bench.runner import run_suite
    from magi.bench.suite import choose

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    setting = Setting(torch.device(device), options.smoke, options.rounds)
    out = options.out or Path("build") / f"bench_{device}.json"
    report = run_suite(
        choose(options.cases), setting, out, options.minutes, on_progress=lambda line: print(line, flush=True)
    )
    console = Console()
    console.width = max(console.width, WIDTH)
    print_table(report, console)
    print(out)
    if broken := [record["name"] for record in report["cases"] if record["status"] in ("error", "no parity")]:
        raise NumericsError(f"{', '.join(broken)}: without a number; the reason is in {out}")


@dataclass(frozen=True)
class BenchDataOptions:
    """Read random clips from encoded latents on one core, the page cache warm, and print how many a second.

    The clip is as in training: random video, start and interval, float32, drawn from the posterior; and, for
    comparison, the posterior's mean. Latents of a 3-D autoencoder have the frames that they were encoded with.
    With --beside, the clips of a config and a training step of it on this device instead, and how many cores keep the
    device busy.
    """

    latents: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """folder that `magi encode` wrote; with --beside also one of videos"""
    beside: Annotated[str, tyro.conf.arg(metavar="PRESET")] = ""
    """preset, config file or run directory: measure its input pipeline beside its step"""
    clips: int = 8
    """with --beside, clips of a forward pass"""
    device: Device = "auto"
    """with --beside, where it trains; auto takes a GPU where there is one"""
    frames: int = 16
    """frames of a clip, where every frame has latents of its own"""
    interval_max: int = 25
    """largest interval, where every frame has latents of its own; 1 is the smallest"""
    seconds: float = 5.0
    """time to measure, twice; with --beside each part"""


def bench_data(argv: list[str]) -> None:
    """Measure how fast clips are read from latents, or the whole input pipeline beside a step."""
    options = parse(BenchDataOptions, "bench data", argv)
    if not options.seconds > 0:
        raise ValueError(f"--seconds {options.seconds}: expected more than 0")
    if options.clips < 1:
        raise ValueError(f"--clips {options.clips}: expected at least 1")
    if options.beside:
        return _bench_pipeline(options)
    if options.latents is None:
        raise ValueError("name what to read: --latents FOLDER, or --beside PRESET with it")
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


def _bench_pipeline(options: BenchDataOptions) -> None:
    """The parts of a config's input pipeline and its step, a line each."""
    check_device(options.device)
    config = preset_or_file(options.beside)
    if options.latents is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"root": str(options.latents)})})
    from magi.bench.input_pipeline import pipeline_speed
    from magi.devices import resolve_device
    from magi.progress import progress

    vae, latent = autoencoder(config)
    with progress("decoding videos", "videos") as report:
        dataset = open_data(config, vae, report)
    device = resolve_device(options.device)
    speed = pipeline_speed(config, dataset, vae, latent, device, options.clips, options.seconds)
    kind = "latents on disk" if speed.encode is None else "videos, decoded"
    print(f"read    {speed.read:,.4g} clips/s a core ({kind})")
    print(f"draw    {speed.draw:,.4g} clips/s a core (masks and noise, stacked)")
    if speed.encode is not None:
        print(f"encode  {speed.encode:,.4g} clips/s on {device.type}; encoded once by 'magi encode', training has none")
    print(f"step    {speed.step:,.4g} clips/s on {device.type}, {options.clips} clips a forward pass")
    enough = "enough" if config.data.workers >= speed.cores else "too few"
    print(f"cores   {speed.cores:.2f} keep it busy; data.workers {config.data.workers}: {enough}")
