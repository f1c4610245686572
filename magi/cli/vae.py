"""``magi vae check`` and ``magi vae import``: is this autoencoder fit for these videos; released weights made safe.

Knows no training.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from magi.cli.options import Device, check_device, checked, existing_folder, parse
from magi.config import DataConfig
from magi.files import write_json
from magi.progress import progress

if TYPE_CHECKING:
    from magi.evaluation.vae_reconstruction import Reconstruction
    from magi.vae.causality import Leak
    from magi.vae.contract import VideoAutoencoder

CHANNELS_A_LINE = 4
# Of CheckOptions, what DataConfig takes as it is.
_DATA_FIELDS = ("frames", "height", "width", "interval_min", "interval_max", "max_bad_fraction")


@dataclass(frozen=True)
class CheckOptions:
    """Encode and decode clips of DATA: how much is lost, how fast it goes, and what the latents look like.

    Nothing is written but --report: training measures the mean and standard deviation of the latents itself.
    """

    vae: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="VAE")]
    """'NAME:WEIGHTS' with NAME sd, cosmos, omni, ltx or small; a folder; 'demo'; 'pixel' or 'pixel:STRIDE'"""
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """folder of videos"""
    clips: int = 64
    """clips to encode and decode, drawn as training draws them"""
    frames: int = 17
    """frames of a clip"""
    height: int = 256
    """height of a frame in pixels, after resize and centre crop"""
    width: int = 256
    """width of a frame in pixels, after resize and centre crop"""
    interval_min: int = 1
    """smallest interval between the frames of a clip"""
    interval_max: int = 25
    """largest interval"""
    seed: int = 0
    """another seed draws other clips"""
    report: Path | None = None
    """file for the figures, as JSON"""
    max_bad_fraction: float = 0.01
    """share of unreadable videos that is tolerated; above it the exit code is 3"""
    frames_per_batch: int = 64
    """frames encoded or decoded at a time"""
    device: Device = "auto"
    """auto takes a GPU where there is one"""


@dataclass(frozen=True)
class ImportOptions:
    """Turn weights that are published as pickles or compiled modules into a folder of JSON and safetensors, safely.

    OmniTokenizer's *_vae.ckpt is read in a child process that may build tensors and nothing else; autoencoder.jit of
    the Cosmos tokenizer 4x8x8 is parsed and never run. Latents are measured as data is encoded, or training starts.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """the released file, *_vae.ckpt or autoencoder.jit"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write to"""
    sha256: str = ""
    """refuse a file of another SHA-256"""


def check(words: list[str]) -> None:
    """Measure an autoencoder on clips of a folder and print the figures."""
    options = parse(CheckOptions, "vae check", words)
    for name, value, least in (
        ("clips", options.clips, 1),
        ("frames-per-batch", options.frames_per_batch, 1),
        ("seed", options.seed, 0),
    ):
        if value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
    fields = {name: getattr(options, name) for name in _DATA_FIELDS}
    data = checked(DataConfig.model_construct(root=str(options.data), **fields))
    existing_folder(options.data)
    check_device(options.device)
    import torch

    from magi.data.clips import ClipDataset
    from magi.data.index.index import open_index
    from magi.devices import resolve_device
    from magi.evaluation.vae_reconstruction import measure_reconstruction, stream_difference
    from magi.vae.adapters import load_vae, named_vae
    from magi.vae.causality import measure_leak
    from magi.vae.contract import latent_shape
    from magi.vae.normalization import Normalization

    device = resolve_device(options.device)
    config = named_vae(options.vae).model_copy(update={"frames_per_batch": options.frames_per_batch})
    vae = load_vae(config).to(device)
    vae.normalize(vae.raw_units())
    latent_shape(vae, data)
    with progress("indexing videos", "videos") as report:
        dataset = ClipDataset(open_index(data, report), data, options.seed)
    with progress("checking", "clips") as report:
        videos = (dataset[sample].video_THWC for sample in range(options.clips))
        at_a_time = max(1, options.frames_per_batch // options.frames)
        measured = measure_reconstruction(vae, videos, options.clips, at_a_time, device, report)
    if not vae.fixed:  # what later frames change is in units of the standard deviation
        vae.normalize(
            Normalization(weights=vae.id, source="these clips", mean=measured.latent_mean, std=measured.latent_std)
        )
    video_BTHWC = torch.from_numpy(dataset[0].video_THWC)[None].to(device)
    leak = None
    if vae.temporal_stride > 1 and options.frames > 1:
        beginning = 1 + vae.temporal_stride
        leak = measure_leak(vae, video_BTHWC, beginning if options.frames > beginning else 1)
    stream_levels = stream_difference(vae, vae.encode(video_BTHWC))
    print(*_lines(vae, measured), *_causality_lines(vae, leak, stream_levels), sep="\n")
    if options.report:
        figures = {"vae": vae.id, **asdict(measured), "leak": leak and asdict(leak), "stream_levels": stream_levels}
        settings = {name: str(value) for name, value in asdict(options).items()}
        write_json(options.report, figures | {"settings": settings})


def _lines(vae: "VideoAutoencoder", measured: "Reconstruction") -> Iterator[str]:
    stride, time = vae.spatial_stride, vae.temporal_stride
    covers = f"{stride} x {stride} pixels" + (f" x {time} frames" if time > 1 else "")
    yield f"autoencoder  {vae.id}, {vae.channels} channels, a latent covers {covers}"
    exact = f", {measured.exact_frames} of {measured.frames} frames are exact" if measured.exact_frames else ""
    if measured.psnr_db is not None and measured.worst_psnr_db is not None:
        yield f"PSNR         {measured.psnr_db:.2f} dB a frame, worst frame {measured.worst_psnr_db:.2f} dB{exact}"
    else:
        yield f"PSNR         all {measured.frames} frames are exact"
    yield f"SSIM         {'frames are too small' if measured.ssim is None else f'{measured.ssim:.4f} a frame'}"
    yield (
        f"speed        encode {measured.encode_frames_per_second:.1f} frames/s, "
        f"decode {measured.decode_frames_per_second:.1f} frames/s"
    )
    yield f"memory       {measured.peak_megabytes:,.0f} MB at most"
    yield "latents      mean and standard deviation of each channel"
    statistics = enumerate(zip(measured.latent_mean, measured.latent_std, strict=True))
    cells = [f"{channel:>3}: {mean:+.4f} {std:.4f}" for channel, (mean, std) in statistics]
    for row in range(0, len(cells), CHANNELS_A_LINE):
        yield " " * 11 + "   ".join(cells[row : row + CHANNELS_A_LINE])


def _causality_lines(vae: "VideoAutoencoder", leak: "Leak | None", stream_levels: int) -> Iterator[str]:
    """What later frames tell earlier latents, and what decoding while frames come costs."""
    if leak is not None:
        first = f"latents 1..{leak.context_latents} of frames 1..{leak.context_frames}"
        if leak.leaks:
            yield f"encoder      LEAKS: {first} change by {leak.encoder:.3g} with later ones; context is encoded alone"
        else:
            yield f"encoder      causal: {first} do not change with later ones ({leak.encoder:.1g})"
    if vae.streams:
        yield f"decoder      streams: latent by latent is the whole clip to {stream_levels} of 255 levels"
    else:
        yield "decoder      decodes a clip as a whole: frames look at later latents, none comes before the last latent"


def import_weights(words: list[str]) -> None:
    """Turn a released checkpoint into a folder that an adapter loads."""
    options = parse(ImportOptions, "vae import", words)
    if not options.checkpoint.is_file():
        raise ValueError(f"{options.checkpoint}: no such file; expected a released checkpoint")
    from magi.untrusted.torchscript import is_torchscript

    name = "cosmos" if is_torchscript(options.checkpoint) else "omni"
    for line in _import_cosmos(options) if name == "cosmos" else _import_omni(options):
        print(line)
    print(f"next: magi vae check {name}:{options.out} DATA, or magi encode DATA LATENTS --vae {name}:{options.out}")


def _import_cosmos(options: ImportOptions) -> Iterator[str]:
    from magi.errors import CheckpointError
    from magi.vae.diffusers.cosmos_import import import_cosmos
    from magi.weights import sha256

    source = sha256(options.checkpoint)
    if options.sha256 and source != options.sha256.lower():
        raise CheckpointError(
            f"{options.checkpoint}: SHA-256 is {source}, expected {options.sha256}; download it again"
        )
    made = import_cosmos(options.checkpoint, options.out)
    yield f"{made.folder}: {made.weights_id}, {made.parameters:,} parameters"
    yield f"checkpoint has SHA-256 {source}"
    if made.spare:
        yield f"{made.spare} tensors of layers that the tokenizer never uses are left out"


def _import_omni(options: ImportOptions) -> Iterator[str]:
    from magi.vae.omnitokenizer.import_weights import import_released

    made = import_released(options.checkpoint, options.out, options.sha256)
    yield f"{made.folder}: {made.id}, {made.parameters:,} parameters in {made.tensors} tensors"
    yield f"checkpoint has SHA-256 {made.source_sha256}"
    yield from made.notes
