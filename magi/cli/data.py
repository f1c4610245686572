"""``magi data index``, ``magi encode`` and ``magi encode-text``: from files to what training reads."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from magi.cli.options import Device, check_device, check_share, checked, existing_folder, parse
from magi.config import DataConfig, VaeConfig
from magi.files import read_text
from magi.progress import progress

if TYPE_CHECKING:
    from magi.data.caption_table import CaptionTable
    from magi.data.index.index import VideoIndex

SHOWN = 10  # skipped files named on the screen; the report names all


@dataclass(frozen=True)
class IndexOptions:
    """Decode every video once, safely, and write the index and a report of what was skipped and why.

    Sub-folders become class labels, unless annotations or a list name them. Files that have not changed since the last
    call are not decoded again, nor are those of another split of the folder, and a call that was stopped continues. N
    workers, each with its own --worker i/N, share the work without talking; the last one to finish writes the index.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos (mp4, m4v, mov, avi, mkv, webm), or a .csv or .jsonl with the columns path, label, split"""
    annotations: str = ""
    """UCF-101's folder of split files, or the Kinetics annotations: a .csv or a folder of them"""
    split: str = ""
    """part that the annotations or the list name: trainlist01, train, val, ..."""
    worker: str = "0/1"
    """i/N: decode the i-th of N shares of the files"""
    processes: int = 0
    """files decoded at a time; 0 is one a core"""
    seconds_per_file: float = 30
    """a file that takes longer to decode is skipped; more for long videos"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    keep_clean: bool = False
    """use the longest sound stretch of a file that is damaged; without this it is skipped"""


def data_index(words: list[str]) -> None:
    """Build the index of a source, or a worker's share of it, and say what is in it."""
    options = parse(IndexOptions, "data index", words)
    worker = parse_worker(options.worker)
    check_share("--max-bad-fraction", options.max_bad_fraction)
    if options.processes < 0:
        raise ValueError(f"--processes {options.processes}: expected 0 (one a core) or more")
    if not 0 < options.seconds_per_file < float("inf"):
        raise ValueError(f"--seconds-per-file {options.seconds_per_file}: expected more than 0")
    _existing_source(options.data)
    from magi.data.decoding.probe import DecodeLimits
    from magi.data.index.index import index_share
    from magi.data.index.sources import Source

    config = DataConfig(
        root=str(options.data),
        annotations=options.annotations,
        split=options.split,
        max_bad_fraction=options.max_bad_fraction,
    )
    limits = DecodeLimits(seconds=options.seconds_per_file)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with progress("decoding videos", "videos") as on_progress:
        share = index_share(
            *(config, worker, options.processes or cores), limits=limits, on_progress=on_progress,
            keep_clean=options.keep_clean,
        )  # fmt: skip
    if share.index is None:
        print(
            f"{options.data}: worker {options.worker} is done; {share.missing_files} files are with other workers, and "
            f"the last one to finish writes the index"
        )
        return
    index, source = share.index, Source.of(options.data, options.annotations, options.split)
    labelled = f" in {len(index.classes)} classes" if index.classes else ""
    missing = f", {index.missing} missing" if index.missing else ""
    print(f"{options.data}: {len(index.videos)} videos{labelled}, {index.skipped} skipped{missing}")
    print(f"index   {source.index_path}")
    print(f"report  {source.report_path}")
    _say_report(json.loads(read_text(source.report_path)))


def _say_report(report_json: dict[str, Any]) -> None:
    """What of the report is worth a line: rates that differ, what was adjusted, kept, ignored and skipped."""
    from magi.data.decoding.frames import KEPT

    rates = report_json["frames_a_second"]
    if rates["lowest"] < rates["highest"] or rates["variable"]:
        print(
            f"frames a second: {rates['lowest']:.3g} to {rates['highest']:.3g}, median {rates['median']:.3g}; "
            f"{rates['variable']} videos of a variable rate"
        )
    adjusted, kept = report_json["adjusted"], report_json["kept_stretches"]
    if shown := {name: count for name, count in adjusted.items() if name != KEPT}:
        print(f"shown as players do: {_counts(shown)} (docs/own_videos.md)")
    for file in kept[:SHOWN]:
        print(f"kept of {file['path']!a} what is sound ({file['detail']})")
    if others := report_json["ignored_videos_of_other_types"]:
        print(f"ignored {_counts(others)}: types that are not read; convert them to mp4")
    for file in report_json["skipped_files"][:SHOWN]:
        print(f"skipped {file['path']!a}: {file['reason']} ({file['detail']})")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _existing_source(path: Path) -> None:
    """A ``ValueError`` unless it is a folder or a list."""
    if path.suffix.lower() in (".csv", ".jsonl") and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: no such list")
    else:
        existing_folder(path)


@dataclass(frozen=True)
class EncodeOptions:
    """Put every video through the autoencoder once; training then reads OUT as data.root, which is much faster.

    Restartable: complete shards stay. N workers, each with its own --worker i/N, share the work without talking; index
    DATA first then. A worker decodes on one core, so several of them keep a GPU busy. An autoencoder that takes each
    frame by itself (pixel, small, sd) writes every frame, and clips are cut when they are trained on; one whose latents
    mix frames (cosmos, omni, ltx) writes clips, which --frames to --seed choose. The mean and standard deviation of
    each latent channel are measured in passing; training whitens with them. Captions (NAME.txt beside NAME.mp4) go with
    the latents; where they have changed since, the same command brings them up to date and encodes nothing again.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos, or a .csv or .jsonl that lists them"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    vae: str = "demo"
    """'demo', a folder, 'pixel', or NAME:WEIGHTS with NAME sd, cosmos, omni, ltx or small"""
    pixel_stride: int = 8
    """stride of the pixel adapter"""
    annotations: str = ""
    """as for 'magi data index'"""
    split: str = ""
    """as for 'magi data index'"""
    height: int = 64
    """height of a frame in pixels, after resize and centre crop"""
    width: int = 64
    """width of a frame in pixels, after resize and centre crop"""
    frames: int = 17
    """frames of a clip, where latents mix frames"""
    fps: float = 0
    """frames a second that every video is read at, by its time stamps; 0 takes the frames that are stored"""
    interval_min: int = 1
    """smallest interval between the frames of such a clip"""
    interval_max: int = 25
    """largest interval"""
    clips_per_video: int = 4
    """such clips of each video; an epoch of training takes one of them, the next epoch another"""
    seed: int = 0
    """of their starts and intervals"""
    dtype: Literal["float16", "float32"] = "float16"
    """of latents on disk"""
    actions: int | None = None
    """numbers of an action, read from the track beside each video (NAME.actions.npy, .csv, .jsonl, or NAME.json); by
    default what the first track says, 0 reads none"""
    worker: str = "0/1"
    """i/N: take every N-th shard from the i-th on"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    frames_per_batch: int = 64
    """frames encoded at a time"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


def encode(words: list[str]) -> None:
    """Write latents of videos."""
    options = parse(EncodeOptions, "encode", words)
    worker = parse_worker(options.worker)
    _existing_source(options.data)
    if options.out.resolve() == options.data.resolve():
        raise ValueError(f"{options.out}: is the folder of the videos; latents need another one")
    check_device(options.device)
    fields = DataConfig.model_fields.keys() & vars(options).keys()
    data = checked(
        DataConfig.model_construct(root=str(options.data), **{name: getattr(options, name) for name in fields})
    )
    from magi.devices import resolve_device
    from magi.latents.encode import EncodeSettings, write_latents
    from magi.vae.adapters import load_vae
    from magi.vae.contract import latent_shape

    vae = load_vae(_vae_config(options)).to(resolve_device(options.device))
    latent_shape(vae, data)  # refuses a size that the stride does not divide, before hours of decoding
    settings = EncodeSettings(
        frames_per_batch=options.frames_per_batch,
        clips_per_video=options.clips_per_video,
        dtype=options.dtype,
        seed=options.seed,
    )
    index, actions = _with_actions(_opened_index(data, worker), options.actions, data)
    settings = replace(settings, actions=actions)
    captions = _captions_beside(index, data)
    if captions.count:
        print(f"captions of {captions.count} of {len(captions)} videos")
    with progress("encoding videos", "videos") as report:
        written = write_latents(index, options.out, data, vae, settings, worker, report, captions)
    print(f"{options.out}: {written} shards written")
    chosen = "" if vae.temporal_stride == 1 else (
        f" --data.frames {data.frames} --data.interval-min {data.interval_min} --data.interval-max {data.interval_max}"
    )  # fmt: skip
    chosen += (f" --data.fps {data.fps:g}" if data.fps else "") + (f" --model.actions {actions}" if actions else "")
    chosen += " --model.text-encoder bytes" if captions.count else ""
    print(f"train on it with: --data.root {options.out}{chosen}")


@dataclass(frozen=True)
class EncodeTextOptions:
    """Put every different caption through a frozen text encoder once; training then reads OUT as data.text_states.

    Needs '.[text]'. The encoder is the folder or hub id of a T5, UMT5, CLIP or any AutoModel of Hugging Face's
    transformers; safetensors alone are read and no code of a repository is run. Restartable: complete shards stay. N
    workers, each with its own --worker i/N, share the work without talking. States of another encoder are refused.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos with their captions, a .csv or .jsonl that lists them, or a folder of latents"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    encoder: str
    """folder or hub id of the encoder"""
    text_length: int = 128
    """tokens after which a caption is cut; model.text_length must be the same"""
    worker: str = "0/1"
    """i/N: take every N-th shard from the i-th on"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos or captions that is tolerated; above it the exit code is 3"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


def encode_text(words: list[str]) -> None:
    """Write the states of captions."""
    options = parse(EncodeTextOptions, "encode-text", words)
    worker = parse_worker(options.worker)
    _existing_source(options.data)
    if options.text_length < 1:
        raise ValueError(f"--text-length {options.text_length}: expected at least 1")
    check_share("--max-bad-fraction", options.max_bad_fraction)
    check_device(options.device)
    from magi.devices import resolve_device
    from magi.text.frozen import FrozenEncoder
    from magi.text.states import write_states

    captions = _captions_of(DataConfig(root=str(options.data), max_bad_fraction=options.max_bad_fraction), worker)
    source = Path(options.encoder)  # a model remembers it, wherever it is used
    found = str(source.resolve()) if source.is_dir() else options.encoder
    encoder = FrozenEncoder.load(found, resolve_device(options.device))
    with progress("encoding captions", "captions") as report:
        header, written, long = write_states(captions, options.out, encoder, options.text_length, worker, report)
    print(f"{options.out}: {header.captions} captions, {written} shards written, encoder {header.encoder}")
    if long:
        print(f"{long} captions reach {header.longest} tokens, and what is longer is cut there")
    print(
        f"train on it with: --data.text-states {options.out} --model.text-encoder frozen --model.text-width "
        f"{header.width} --model.text-length {header.longest}"
    )


def _captions_of(data: DataConfig, worker: tuple[int, int]) -> "list[str]":
    """All captions of a folder of videos or of latents."""
    from magi.latents.dataset import is_latents, latent_captions

    root = Path(data.root)
    captions = latent_captions(root) if is_latents(root) else _captions_beside(_opened_index(data, worker), data)
    return list(captions.texts())


def _captions_beside(index: "VideoIndex", data: DataConfig) -> "CaptionTable":
    """The captions beside the videos; those that cannot be read are named."""
    from magi.data.caption_table import CaptionTable

    captions, reasons = CaptionTable.beside(index, data.max_bad_fraction)
    for reason in reasons[:SHOWN]:
        print(f"skipped {reason}")
    return captions


def _with_actions(index: "VideoIndex", asked: int | None, data: DataConfig) -> "tuple[VideoIndex, int]":
    """The videos that are encoded, and the numbers of an action; the others are named."""
    from magi.data.actions import found_actions, with_actions

    actions = found_actions(index) if asked is None else asked
    if actions < 0:
        raise ValueError(f"--actions {actions}: expected at least 0")
    if not actions:
        return index, 0
    if data.fps:
        raise ValueError("--fps: actions are a row a stored frame; leave it out, or take no actions with --actions 0")
    index, reasons = with_actions(index, actions, data.max_bad_fraction)
    print(f"actions {actions} numbers, {len(index.videos)} videos with them")
    for reason in reasons[:SHOWN]:
        print(f"skipped {reason}")
    return index, actions


def _opened_index(data: DataConfig, worker: tuple[int, int]) -> "VideoIndex":
    """The index of the videos; several workers must not all make it."""
    from magi.data.index.index import open_index
    from magi.data.index.sources import Source

    source = Source.of(Path(data.root), data.annotations, data.split)
    if worker[1] > 1 and not source.index_path.is_file():
        raise ValueError(f"{source.index_path}: no index; before several workers run '{source.index_command}'")
    with progress("decoding videos", "videos") as on_progress:
        return open_index(data, on_progress)


def parse_worker(text: str) -> tuple[int, int]:
    """(i, N) of ``i/N``; ``ValueError`` unless 0 <= i < N."""
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise ValueError(f"--worker {text}: expected i/N with 0 <= i < N, as in 0/4")


def _vae_config(options: EncodeOptions) -> VaeConfig:
    from magi.vae.adapters import named_vae

    named = named_vae(options.vae)
    given = {"frames_per_batch": options.frames_per_batch}
    if options.vae == "pixel":
        given["pixel_stride"] = options.pixel_stride
    return checked(named.model_copy(update=given))
