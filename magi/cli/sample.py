"""``magi sample`` and ``magi export``: generate videos with a model, and write it for others to load."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from magi.cli.options import Device, SamplingChanges, Speed, check_device, parse
from magi.config import SamplingConfig
from magi.errors import DataError
from magi.presets import at_speed, cost_and_quality
from magi.progress import Report, progress

if TYPE_CHECKING:
    import numpy as np

    from magi.config import DataConfig
    from magi.sampling.pipeline import MagiPipeline

CONTEXT_SECONDS = 600.0  # to decode the context video, which may be long: one that was asked for is worth the wait
SHEET = "contact_sheet.png"
MOST_PROMPT_BYTES = 2**20
FPS = 25.0  # of videos where neither the model's data nor a context video has a rate


@dataclass(frozen=True)
class SampleOptions:
    """Generate videos, or continue one: mp4 and GIF files and a contact sheet in OUT.

    What is not given is taken from the config of the model. Video k has the seed SEED + k, so it is the same in any
    COUNT and BATCH.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """run directory, exported folder, hub id, or a shipped one: 'demo', 'platform', 'text'"""
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
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """what the videos are to show, of a model with text; it is written beside each as NAME.txt"""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """text file of prompts, a line each: COUNT videos of every line, named after it"""
    negative_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """what guidance leads away from; without one, from no prompt"""
    text_encoder: str = ""
    """folder or hub id of the frozen text encoder, where it is not where the model's training had it"""
    interval: int = 1
    """frame interval that the model is conditioned on, and at which the context is read"""
    actions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """what leads to each frame, of a model with actions: .npy, .csv, .jsonl, or a world's .json; entry 0 is not used"""
    speed: Speed = "full"
    """full is the model's config; fast are the fewest denoising steps that keep its quality (magi tune-steps)"""
    sampling: SamplingChanges = field(default_factory=lambda: SamplingChanges({}))
    count: int = 1
    """number of videos"""
    batch: int = 8
    """videos generated at a time"""
    seed: int = 0
    """seed of the first video"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class ContextVideo:
    """The frames to continue, and the frame rate that they are to be shown at."""

    video_THWC: "np.ndarray"
    fps: float


def sample(argv: list[str]) -> None:
    """Generate videos and write them."""
    options = parse(SampleOptions, "sample", argv)
    _check(options)
    pipeline = _load(options.model, options.device, options.text_encoder)
    own = pipeline.config.sampling
    settings = at_speed(own, options.speed).changed(**options.sampling.fields)
    if options.speed != "full":
        print(f"speed {options.speed}: {cost_and_quality(own, options.speed, settings)}")
    context = None
    if options.context is not None:
        context = read_context(options.context, options.context_frames, options.interval, pipeline.config.data)
    actions = None
    if options.actions is not None:
        actions = _read_actions(options.actions, pipeline.config.model.actions, options.frames)
    asked = _asked(options)
    _tell_of_earlier_files(options, asked)
    began = time.monotonic()
    with progress("generating frames", "frames") as report:
        videos = _generate(pipeline, options, settings, asked, context, actions, report, began)
    fps = (pipeline.config.data.fps or FPS) / options.interval if context is None else context.fps
    _write(options, asked, videos, 0 if context is None else len(context.video_THWC), fps)


@dataclass(frozen=True)
class AskedVideo:
    """A video to make: ``name`` of its files, seed and prompt."""

    name: str
    seed: int
    prompt: str | None


def _asked(options: SampleOptions) -> list[AskedVideo]:
    """The videos in order: of each prompt those of all seeds."""
    seeds = range(options.seed, options.seed + options.count)
    if options.prompts is None:
        return [AskedVideo(f"video_{seed:05d}", seed, options.prompt) for seed in seeds]
    lines = enumerate(_read_prompts(options.prompts), start=1)
    return [AskedVideo(f"{line:03d}_{_slug(text)}_{seed:05d}", seed, text) for line, text in lines for seed in seeds]


def _read_prompts(path: Path) -> list[str]:
    """The lines of a text file; ``ValueError`` for one that is empty, or no text."""
    from magi.data.captions import one_line
    from magi.files import read_text

    try:
        lines = read_text(path, MOST_PROMPT_BYTES).removeprefix("\ufeff").rstrip("\r\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts: {path} cannot be read ({' '.join(str(error).split())[:120]})") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append(one_line(line))
        except ValueError as error:
            raise ValueError(f"--prompts: {path}, line {number}: {error}") from None
        if not prompts[-1]:
            raise ValueError(f"--prompts: {path}, line {number} is empty; remove it")
    if not prompts:
        raise ValueError(f"--prompts: {path} has no lines")
    return prompts


def _slug(text: str) -> str:
    """Letters and digits of a prompt as the middle of a file's name, at most 60 of them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "prompt"


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
    if options.prompt is not None and options.prompts is not None:
        raise ValueError("--prompt and --prompts: give one of them")
    if options.prompts is not None and not options.prompts.is_file():
        raise ValueError(f"{options.prompts}: no such file (--prompts)")
    check_device(options.device)


def _load(model: str, device: Device, text_encoder: str = "") -> "MagiPipeline":
    from magi.devices import resolve_device
    from magi.sampling.pipeline import MagiPipeline

    return MagiPipeline.from_pretrained(model, resolve_device(device), text_encoder=text_encoder)


def read_context(path: Path, frames: int, interval: int, size: "DataConfig") -> ContextVideo:
    """``frames`` frames (0: all) of a video file, ``interval`` apart, resized and cropped as in training.

    The file is decoded in a child process first, as ``magi data index`` does. ``DataError`` for a file that is no
    usable video, ``ValueError`` for one that is missing or too short.
    """
    from magi.data.clips import clip_span, fit_frames
    from magi.data.decoding.frames import at_rate, read_frames
    from magi.data.decoding.probe import DecodeLimits, RejectedFile
    from magi.data.decoding.sandbox import probe_safely

    if not path.is_file():
        raise ValueError(f"{path}: no such video file (--context)")
    probe = probe_safely(path, DecodeLimits(seconds=CONTEXT_SECONDS))
    if isinstance(probe, RejectedFile):
        raise DataError(f"{path}: not a usable video: {probe.reason} ({probe.detail})")
    probe = at_rate(probe, size.fps) if size.fps else probe
    wanted = frames or (probe.frames - 1) // interval + 1
    if clip_span(wanted, interval) > probe.frames:
        raise ValueError(
            f"{path}: has {probe.frames} frames, but {wanted} context frames at interval {interval} need "
            f"{clip_span(wanted, interval)}; ask for fewer"
        )
    video_THWC = read_frames(path, range(0, clip_span(wanted, interval), interval), probe)
    return ContextVideo(fit_frames(video_THWC, size.height, size.width), (probe.fps or FPS) / interval)


def _read_actions(path: Path, count: int, frames: int) -> "np.ndarray":
    """Rows of the track of a video; ``ValueError`` for a missing file or a model without actions."""
    from magi.data.actions import read_track

    if not path.is_file():
        raise ValueError(f"{path}: no such file (--actions)")
    if not count:
        raise ValueError("--actions: this model has no actions; leave it out")
    return read_track(path, count, frames)


def _generate(
    pipeline: "MagiPipeline",
    options: SampleOptions,
    settings: SamplingConfig,
    asked: Sequence[AskedVideo],
    context: ContextVideo | None,
    actions: "np.ndarray | None",
    report: Report,
    began: float,
) -> "list[np.ndarray]":
    """The videos, video_THWC each, context included, a batch at a time."""
    import numpy as np

    known = 0 if context is None else len(context.video_THWC)
    done, total = 0, len(asked) * max(0, options.frames - known)
    videos: list[np.ndarray] = []
    for start in range(0, len(asked), options.batch):
        batch, frames = asked[start : start + options.batch], []
        prompts = [video.prompt for video in batch]
        for frame_BHWC in pipeline.stream(
            frames=options.frames,
            context=None if context is None else context.video_THWC,
            labels=options.label,
            interval=options.interval,
            seeds=[video.seed for video in batch],
            actions=actions,
            prompt=None if prompts[0] is None else prompts,
            negative_prompt=options.negative_prompt,
            sampling=settings,
        ):
            frames.append(frame_BHWC.numpy())
            if not done:
                print(f"first frame after {time.monotonic() - began:.1f} s", flush=True)
            done += len(batch)
            report(done, total)
        for video_THWC in np.stack(frames, axis=1):
            videos.append(video_THWC if context is None else np.concatenate([context.video_THWC, video_THWC]))
    return videos


def _write(
    options: SampleOptions, asked: Sequence[AskedVideo], videos: "Sequence[np.ndarray]", given: int, fps: float
) -> None:
    """As mp4 and GIF at ``fps``, with their prompts, and a sheet; the first ``given`` frames are the context's."""
    from magi.data.captions import caption_path
    from magi.data.sample_grid import contact_sheet, prompt_label
    from magi.data.video_writer import write_gif, write_mp4, write_png
    from magi.files import write_text

    for video, video_THWC in zip(asked, videos, strict=True):
        path = options.out / f"{video.name}.mp4"
        write_mp4(path, video_THWC, fps)
        write_gif(path.with_suffix(".gif"), video_THWC, fps)
        print(path)
        print(path.with_suffix(".gif"))
        if video.prompt is not None:
            write_text(caption_path(path), video.prompt + "\n")
    sheet = options.out / SHEET
    labels = [f"seed {video.seed}" if options.prompts is None else prompt_label(video.prompt or "") for video in asked]
    write_png(sheet, contact_sheet(list(videos), given, labels=labels))
    print(sheet)


def _tell_of_earlier_files(options: SampleOptions, asked: Sequence[AskedVideo]) -> None:
    """Say, before anything is generated, what becomes of the files of earlier calls in the folder."""
    ours = {f"{video.name}{suffix}" for video in asked for suffix in (".mp4", ".gif")} | {SHEET}
    there = {path.name for path in options.out.glob("*") if path.suffix in (".mp4", ".gif", ".png")}
    if there:
        print(f"{options.out}: of {len(there)} files there {len(there & ours)} are overwritten, the others stay")


@dataclass(frozen=True)
class ExportOptions:
    """Write what MagiPipeline.from_pretrained loads: averaged weights, config, model card, autoencoder, class names."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directory (or any other MODEL)"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    dtype: Literal["float32", "float16"] = "float32"
    """of the weight file; float16 halves it, and it is read back as float32"""


def export(argv: list[str]) -> None:
    """Write an export."""
    options = parse(ExportOptions, "export", argv)
    _load(options.run, "cpu").save_pretrained(options.out, options.dtype)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")
