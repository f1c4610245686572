"""``magi sample`` and ``magi export``: a trained model at work, and handed on."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from magi.cli.options import Device, Speed, check_device, parse
from magi.errors import DataError
from magi.progress import Report, progress

if TYPE_CHECKING:
    import numpy as np

    from magi.config import DataConfig, SamplingConfig
    from magi.sampling.pipeline import MagiPipeline

FPS = 25.0  # of videos without a context video


@dataclass(frozen=True)
class SampleOptions:
    """Generate videos, or continue one: mp4 and GIF files and a contact sheet in OUT.

    What is not given is taken from the config of the model. Video k has the seed SEED + k, so it is the same in any
    COUNT and BATCH.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory, exported folder, hub id, or 'demo'"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    frames: int = 16
    """frames of a video, those of the context included"""
    context: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """video to continue; resized and cropped to the model's size"""
    context_frames: int = 1
    """frames taken from the context video, INTERVAL apart; 0 takes all"""
    label: Annotated[str | None, tyro.conf.arg(metavar="NAME|NUMBER")] = None
    """class of the videos"""
    interval: int = 1
    """frame interval that the model is told, and at which the context is read"""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """classifier-free guidance scale; 1 is none"""
    iterations: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """masked-prediction iterations a frame"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """denoising steps a token"""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """scale of the noise in the denoising steps"""
    speed: Speed = "full"
    """share of the config's iterations and steps; all but full cost quality (docs/performance.md)"""
    longer: Annotated[Literal["window", "interpolate"] | None, tyro.conf.arg(metavar="window|interpolate")] = None
    """how videos grow longer than the model was trained on"""
    noise_level: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """noise level of the frames that are observed; 1 adds none"""
    count: int = 1
    """number of videos"""
    batch: int = 8
    """videos made at a time"""
    seed: int = 0
    """seed of the first video"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class ContextVideo:
    """The frames to continue, and the frame rate that they are to be shown at."""

    video_THWC: "np.ndarray"
    fps: float


def sample(words: list[str]) -> None:
    """Generate videos and write them."""
    options = parse(SampleOptions, "sample", words)
    _check(options)
    pipeline = _load(options.model, options.device)
    if options.speed != "full":
        _say_speed(options.model, pipeline.config.sampling, options.speed)
        pipeline = pipeline.at_speed(options.speed)
    context = None
    if options.context is not None:
        context = read_context(options.context, options.context_frames, options.interval, pipeline.config.data)
    began = time.monotonic()
    with progress("generating frames", "frames") as report:
        videos = _generate(pipeline, options, context, report, began)
    _write(options, videos, context)


def _say_speed(model: str, full: "SamplingConfig", name: str) -> None:
    """Say aloud what a speed changes, and what it costs where that was measured."""
    from magi.presets import SPEEDS, at_speed
    from magi.sampling.pretrained import SPEEDS_FILE, find_model

    sampling = at_speed(full, name)
    steps = f"{sampling.steps}" + (f"..{sampling.last_steps}" if sampling.last_steps else "")
    print(
        f"speed {name}: {SPEEDS[name].summary}: {sampling.iterations} iterations x {steps} steps "
        f"instead of {full.iterations} x {full.steps}"
    )
    path = find_model(model) / SPEEDS_FILE
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in measured:
        print("quality at this speed: not measured for this model, speed only")
        return
    for frames, means in measured[name]["frames"].items():
        full_means = measured.get("full", {}).get("frames", {}).get(frames, {})
        figures = ", ".join(
            f"{oracle} {value:.2f}" + (f" (full {full_means[oracle]:.2f})" if oracle in full_means else "")
            for oracle, value in means.items()
        )
        print(f"quality at this speed, frames {frames} of {measured[name]['protocol']}: {figures}")


def _check(options: SampleOptions) -> None:
    """Refuse what no model could do, before one is loaded."""
    for name, value, least in (
        ("frames", options.frames, 1),
        ("count", options.count, 1),
        ("batch", options.batch, 1),
        ("interval", options.interval, 1),
        ("context-frames", options.context_frames, 0),
    ):
        if value < least:
            raise ValueError(f"--{name} {value}: expected at least {least}")
    if options.context is not None and options.context_frames >= options.frames:
        raise ValueError(
            f"--context-frames {options.context_frames}: leaves none of --frames {options.frames} to generate; "
            "--frames counts the context too"
        )
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is a file; name a folder to write to")
    check_device(options.device)


def _load(model: str, device: Device) -> "MagiPipeline":
    from magi.sampling.pipeline import MagiPipeline
    from magi.training.parallelize import resolve_device

    return MagiPipeline.from_pretrained(model, resolve_device(device))


def read_context(path: Path, frames: int, interval: int, size: "DataConfig") -> ContextVideo:
    """``frames`` frames (0: all) of a video file, ``interval`` apart, resized and cropped as in training.

    The file is decoded in a child process first, as ``magi data index`` does. ``DataError`` for a file that is no
    usable video, ``ValueError`` for one that is missing or too short.
    """
    from magi.data.clips import clip_span, fit_frames
    from magi.data.decoding.frames import Skip, read_frames
    from magi.data.decoding.sandbox import probe_safely

    if not path.is_file():
        raise ValueError(f"{path}: no such video file (--context)")
    probe = probe_safely(path)
    if isinstance(probe, Skip):
        raise DataError(f"{path}: not a usable video: {probe.reason} ({probe.detail})")
    wanted = frames or (probe.frames - 1) // interval + 1
    if clip_span(wanted, interval) > probe.frames:
        raise ValueError(
            f"{path}: has {probe.frames} frames, but {wanted} context frames at interval {interval} need "
            f"{clip_span(wanted, interval)}; ask for fewer"
        )
    video_THWC = read_frames(path, range(0, clip_span(wanted, interval), interval), probe)
    return ContextVideo(fit_frames(video_THWC, size.height, size.width), max(1.0, probe.fps / interval))


def _generate(
    pipeline: "MagiPipeline", options: SampleOptions, context: ContextVideo | None, report: Report, began: float
) -> "list[np.ndarray]":
    """The videos, video_THWC each, context included, a batch at a time."""
    import numpy as np

    known = 0 if context is None else len(context.video_THWC)
    names = ("guidance", "iterations", "steps", "temperature", "longer", "noise_level")
    given = {name: getattr(options, name) for name in names}
    done, total = 0, options.count * max(0, options.frames - known)
    videos: list[np.ndarray] = []
    for start in range(0, options.count, options.batch):
        seeds = range(options.seed + start, options.seed + min(start + options.batch, options.count))
        frames = []
        for frame_BHWC in pipeline.stream(
            frames=options.frames,
            context=None if context is None else context.video_THWC,
            labels=options.label,
            interval=options.interval,
            seeds=seeds,
            sampling={name: value for name, value in given.items() if value is not None},
        ):
            frames.append(frame_BHWC.numpy())
            if not done:
                print(f"first frame after {time.monotonic() - began:.1f} s", flush=True)
            done += len(seeds)
            report(done, total)
        made_BTHWC = np.stack(frames, axis=1)
        videos += [made if context is None else np.concatenate([context.video_THWC, made]) for made in made_BTHWC]
    return videos


def _write(options: SampleOptions, videos: "Sequence[np.ndarray]", context: ContextVideo | None) -> None:
    from magi.data.video_writer import contact_sheet, write_gif, write_mp4, write_png

    given = 0 if context is None else len(context.video_THWC)
    fps = FPS / options.interval if context is None else context.fps
    for number, video_THWC in enumerate(videos):
        path = options.out / f"video_{options.seed + number:05d}.mp4"
        write_mp4(path, video_THWC, fps)
        write_gif(path.with_suffix(".gif"), video_THWC, fps)
        print(path)
        print(path.with_suffix(".gif"))
    sheet = options.out / "contact_sheet.png"
    labels = [f"seed {options.seed + number}" for number in range(len(videos))]
    write_png(sheet, contact_sheet(list(videos), given, labels=labels))
    print(sheet)


@dataclass(frozen=True)
class ExportOptions:
    """Write what MagiPipeline.from_pretrained loads: averaged weights, config, model card, autoencoder, class names."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directory (or any other MODEL)"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    dtype: Literal["float32", "float16"] = "float32"
    """of the weight file; float16 halves it, and it is read back as float32"""


def export(words: list[str]) -> None:
    """Write an export."""
    options = parse(ExportOptions, "export", words)
    _load(options.run, "cpu").save_pretrained(options.out, options.dtype)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")
