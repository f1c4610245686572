"""``magi data digits``, ``magi data index`` and ``magi encode``: from files to what training reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from magi.cli.options import Device, check_device, checked, existing_folder, parse
from magi.cli.progress import progress
from magi.config import DataConfig, VaeConfig

SHOWN = 10  # skipped files named on the screen; the report names all


@dataclass(frozen=True)
class DigitsOptions:
    """Write the built-in videos: ten classes of bouncing digits with exact physics, as mp4 files.

    OUT/<digit>/<digit>_<number>.mp4, 25 frames a second, each beside a .json of the exact positions. The same options
    give the same pixels; clips that are there already are kept.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    clips: int = 1000
    """number of videos, spread evenly over the classes"""
    size: int = 64
    """height and width in pixels; even"""
    seed: int = 0
    """another seed gives other videos of the same kind"""
    glyphs: int = 1
    """digits a video; they pass through each other, and the first one is the label"""
    frames: int = 200
    """frames a video"""


def data_digits(words: list[str]) -> None:
    """Write the built-in videos."""
    options = parse(DigitsOptions, "data digits", words)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: expected 0 or more")
    from magi.data.digits import write_digits

    with progress("writing videos", "videos") as report:
        written = write_digits(
            options.out, options.clips, options.size, options.seed, options.glyphs, options.frames, report
        )
    kept = options.clips - written
    print(f"{options.out}: {written} videos written" + (f", {kept} were there" if kept else ""))


@dataclass(frozen=True)
class IndexOptions:
    """Decode every video of a folder once, safely, and write the index and a report of what was skipped and why.

    Sub-folders become class labels. Files that have not changed since the last call are not decoded again.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """folder of videos (mp4, m4v, mov, avi, mkv, webm)"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""


def data_index(words: list[str]) -> None:
    """Build the index of a folder and say what is in it."""
    options = parse(IndexOptions, "data index", words)
    if not 0 <= options.max_bad_fraction <= 1:
        raise ValueError(f"--max-bad-fraction {options.max_bad_fraction}: expected a share between 0 and 1")
    existing_folder(options.root)
    from magi.data.index import INDEX_NAME, REPORT_NAME, build_index

    with progress("decoding videos", "videos") as report:
        index = build_index(options.root, options.max_bad_fraction, report)
    labelled = f" in {len(index.classes)} classes" if index.classes else ""
    print(f"{options.root}: {len(index.videos)} videos{labelled}, {index.skipped} skipped")
    print(f"index   {options.root / INDEX_NAME}")
    print(f"report  {options.root / REPORT_NAME}")
    if index.skipped:
        report_json = json.loads((options.root / REPORT_NAME).read_text(encoding="utf-8"))
        for file in report_json["skipped_files"][:SHOWN]:
            print(f"skipped {file['path']!a}: {file['reason']} ({file['detail']})")


@dataclass(frozen=True)
class EncodeOptions:
    """Put every video through the autoencoder once; training then reads OUT as data.root, which is much faster.

    Restartable: whole shards are kept. N workers, each with its own --worker i/N, share the work without talking.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    vae: str = "demo"
    """'demo', a folder that train-vae wrote, or 'pixel'"""
    pixel_stride: int = 8
    """stride of the pixel adapter"""
    height: int = 64
    """height of a frame in pixels, after resize and centre crop"""
    width: int = 64
    """width of a frame in pixels, after resize and centre crop"""
    worker: str = "0/1"
    """i/N: take every N-th shard from the i-th on"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    frames_per_batch: int = 64
    """frames encoded at a time"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


def encode(words: list[str]) -> None:
    """Write latents of a folder of videos."""
    options = parse(EncodeOptions, "encode", words)
    worker = parse_worker(options.worker)
    existing_folder(options.data)
    check_device(options.device)
    data = checked(
        DataConfig.model_construct(
            root=str(options.data),
            height=options.height,
            width=options.width,
            max_bad_fraction=options.max_bad_fraction,
        )
    )
    from magi.data.index import open_index
    from magi.data.latents import write_latents
    from magi.training.parallel import chosen_device
    from magi.vae.contract import latent_shape
    from magi.vae.load import load_vae

    vae = load_vae(_vae_config(options)).to(chosen_device(options.device))
    latent_shape(vae, data)  # refuses a size that the stride does not divide, before hours of decoding
    with progress("decoding videos", "videos") as report:
        index = open_index(data, report)
    with progress("encoding videos", "videos") as report:
        written = write_latents(
            index, options.out, data, vae.encode, vae.id, options.frames_per_batch, worker=worker, progress=report
        )
    print(f"{options.out}: {written} shards written")
    print(f"train on it with: --data.root {options.out}")


def parse_worker(text: str) -> tuple[int, int]:
    """(i, N) of ``i/N``; ``ValueError`` unless 0 <= i < N."""
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise ValueError(f"--worker {text}: expected i/N with 0 <= i < N, as in 0/4")


def _vae_config(options: EncodeOptions) -> VaeConfig:
    batch = options.frames_per_batch
    if options.vae == "pixel":
        given = VaeConfig.model_construct(name="pixel", pixel_stride=options.pixel_stride, frames_per_batch=batch)
    else:
        given = VaeConfig.model_construct(name="small", weights=options.vae, frames_per_batch=batch)
    return checked(given)
