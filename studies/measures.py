"""What is measured of generated and of real videos, and how measures are stored: tensors by name, a row a clip.

- ``digits3d`` (B, D): features of clips of 16 frames, for fvd[digits3d];
- ``grey_edges`` (B, T, 96): of every frame the grey level of 8x8 cells and the edges of 4x4, at two scales, for
  fid[grey+edges], a Frechet distance a frame that needs no weights: what is where, and how sharp;
- ``adjacent_l2``, ``brightness``, ``sharpness`` (B, T): curves of long videos; on digits also the
  ground-truth metrics ``class_accuracy``, ``position_error_px``, ``intensity_ratio``.

Neither distance is on the scale of the FVD and FID of papers, so they always carry their names. Knows no training.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from magi.devices import resolve_device
from magi.evaluation.metrics.frechet import distance_of
from magi.evaluation.metrics.temporal_curves import CURVES, adjacent_l2
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.moving_digits.digits3d import Digits3d
from magi.evaluation.moving_digits.ground_truth import measure as measure_ground_truth
from magi.evaluation.moving_digits.protocol import read_real_clips
from magi.evaluation.networks.features import extract
from magi.evaluation.protocol.clip_table import by_number
from magi.evaluation.protocol.real_clips import frozen
from magi.files import write_json
from magi.sampling.pipeline import MagiPipeline
from magi.vae.adapters import load_vae
from magi.vae.contract import VideoAutoencoder
from magi.weights import weights_hash, write_tensors
from studies.sources import Source, held_out_clips

FVD, FID = "fvd[digits3d]", "fid[grey+edges]"
PREDICTED_FRAMES = 16
LONG_FRAMES = 104
LONG_CONTEXT = 4
LONG_CLIPS = 64
BATCH = 64
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 9.0)


Measures = Mapping[str, Tensor]
"""Measures of one run, or of real clips: tensors by name, a row a clip."""


def fvd(generated_BD: Tensor, real_BD: Tensor) -> float:
    """fvd[digits3d] of features; ``ValueError`` for no features."""
    return distance_of(generated_BD.double(), real_BD.double(), allow_singular=True)


def fid(generated_BTF: Tensor, real_BTF: Tensor) -> float:
    """fid[grey+edges]: the distance of each frame but the first, which is given; mean over frames."""
    frames = range(1, generated_BTF.shape[1])
    distances = [
        distance_of(generated_BTF[:, t].double(), real_BTF[:, t].double(), allow_singular=True) for t in frames
    ]
    return sum(distances) / len(distances)


def predicted(
    pipe: MagiPipeline,
    context_BTHWC: Tensor | None,
    frames: int,
    labels: list[int] | None = None,
    guidance: float | None = None,
    longer: Literal["window", "interpolate"] | None = None,
) -> Tensor:
    """Video_BTHWC uint8 of ``frames`` frames that begin with the context, if any; clip k is generated with seed k."""
    clips = len(labels or ()) if context_BTHWC is None else len(context_BTHWC)
    asked = {"guidance": guidance, "longer": longer}
    sampling = {name: value for name, value in asked.items() if value is not None}
    videos = []
    for first in range(0, clips, BATCH):
        part = slice(first, min(first + BATCH, clips))
        result = pipe(
            frames=frames,
            context=None if context_BTHWC is None else context_BTHWC[part],
            labels=None if labels is None else labels[part],
            seeds=range(part.start, part.stop),
            sampling=sampling,
        )
        videos.append(result.video_BTHWC.cpu())
    return torch.cat(videos)


def clip_features(video_BTHWC: Tensor, device: str) -> dict[str, Tensor]:
    """``digits3d`` (B, D) of whole clips and ``grey_edges`` (B, T, 96) of their frames."""
    network = Digits3d.load().to(resolve_device(device))
    frames = [frame_features(part_BTHWC) for part_BTHWC in video_BTHWC.split(BATCH)]
    return {"digits3d": extract(network, video_BTHWC.split(BATCH)), "grey_edges": torch.cat(frames)}


def frame_features(video_BTHWC: Tensor) -> Tensor:
    """Features_BTF of frames of uint8: grey levels of 8x8 cells, and root mean square gradient of 4x4 at full
    and at half size: the mean gradient would be the same for a sharp edge and a soft one.
    """
    grey_BTHW = video_BTHWC.float().mean(-1) / 255
    found = [F.adaptive_avg_pool2d(grey_BTHW, 8)]
    for stride in (1, 2):
        scaled = F.avg_pool2d(grey_BTHW, stride)
        across = scaled[..., 1:-1, 2:] - scaled[..., 1:-1, :-2]
        down = scaled[..., 2:, 1:-1] - scaled[..., :-2, 1:-1]
        found.append(F.adaptive_avg_pool2d(across**2 + down**2, 4).sqrt())
    return torch.cat([cells.flatten(2) for cells in found], dim=2)


def blurred(video_BTHWC: Tensor, pixels: float = 1.0) -> Tensor:
    """Every frame under a Gaussian of standard deviation ``pixels``; uint8."""
    radius = math.ceil(3 * pixels)
    weight_K = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * pixels**2))
    weight_K = (weight_K / weight_K.sum()).expand(3, 1, 1, -1)
    images_NCHW = video_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float()
    for size, kernel in (((radius, radius, 0, 0), weight_K), ((0, 0, radius, radius), weight_K.transpose(2, 3))):
        images_NCHW = F.conv2d(F.pad(images_NCHW, size, mode="replicate"), kernel, groups=3)
    return images_NCHW.round().byte().permute(0, 2, 3, 1).unflatten(0, video_BTHWC.shape[:2])


def guided_measures(pipe: MagiPipeline, labels: list[int], scale: float, device: str) -> dict[str, Tensor]:
    """Of 16 frames generated from a class alone, guided at ``scale``: features, and the class accuracy (B, T)."""
    video_BTHWC = predicted(pipe, None, PREDICTED_FRAMES, labels, scale)
    seen_BT = DigitClassifier.load().classify(video_BTHWC.flatten(0, 1).numpy()).reshape(len(labels), -1)
    correct_BT = torch.from_numpy(seen_BT) == torch.tensor(labels)[:, None]
    return {
        f"digits3d_guidance_{scale:g}": clip_features(video_BTHWC, device)["digits3d"],
        f"class_guidance_{scale:g}": correct_BT.float(),
    }


def long_curves(source: Source, video_BTHWC: Tensor) -> dict[str, Tensor]:
    """All that is measured of long videos, frame by frame."""
    return frame_curves(video_BTHWC) | (ground_truth_curves(source, video_BTHWC) if source.name == "digits" else {})


def frame_curves(video_BTHWC: Tensor) -> dict[str, Tensor]:
    """Change between adjacent frames (B, T-1), brightness and sharpness (B, T)."""
    return {name: CURVES[name](video_BTHWC) for name in ("adjacent_l2", "brightness", "sharpness")}


def ground_truth_curves(source: Source, video_BTHWC: Tensor) -> dict[str, Tensor]:
    """Ground-truth metrics of the digits (B, T): class accuracy, position error in pixels, intensity against real."""
    clips = read_real_clips(source.held_out, len(video_BTHWC), video_BTHWC.shape[1])
    curves = measure_ground_truth(video_BTHWC.numpy(), clips, DigitClassifier.load())
    return {name: torch.from_numpy(np.ascontiguousarray(values_BT)) for name, values_BT in curves.items()}


def labels_of(source: Source, count: int) -> list[int]:
    """Classes of the held-out digits, in the order of ``held_out_clips``: their folders."""
    paths = sorted(source.held_out.glob("[0-9]/*.mp4"), key=by_number)
    return [int(path.parent.name) for path in paths[:count]]


def real_measures(source: Source, folder: Path, device: str) -> Measures:
    """Measures of real clips, saved in ``folder``.

    Features without a prefix are of the reference, which all else is scored against. The others are of the clips that
    are continued: as they are (``floor_``: real against other real), through the autoencoder (``vae_``: no model can be
    expected to do better), and corrupted: frames in another order (``shuffled_``), the first one alone (``frozen_``),
    blurred (``blurred_``); a measure to which these are as good as the floor is
    insensitive to them. Curves are of continued clips.
    """
    vae = load_vae(source.vae_config).to(resolve_device(device))
    settings = real_settings(source, vae.id)
    return load_or_compute(folder / "real.safetensors", settings, lambda: _real_measures(source, vae, device))


def _real_measures(source: Source, vae: VideoAutoencoder, device: str) -> dict[str, Tensor]:
    clips_BTHWC = held_out_clips(source, PREDICTED_FRAMES)
    order_T = torch.randperm(PREDICTED_FRAMES, generator=torch.Generator().manual_seed(0))
    tensors = clip_features(held_out_clips(source, PREDICTED_FRAMES, "reference"), device)
    for name, video_BTHWC in (
        ("floor", clips_BTHWC),
        ("vae", through(vae, clips_BTHWC)),
        ("shuffled", clips_BTHWC[:, order_T]),
        ("frozen", frozen(clips_BTHWC)),
        ("blurred", blurred(clips_BTHWC)),
    ):
        tensors |= {f"{name}_{key}": value for key, value in clip_features(video_BTHWC, device).items()}
    long_BTHWC = held_out_clips(source, LONG_FRAMES, count=LONG_CLIPS)
    tensors |= frame_curves(long_BTHWC)
    tensors |= {f"vae_{key}": value for key, value in frame_curves(through(vae, long_BTHWC)).items()}
    for interval in (2, 4, 8):
        frames = (120 if source.name == "pendulum" else 200) // interval
        fast_BTHWC = held_out_clips(source, min(LONG_FRAMES, frames), interval=interval, count=LONG_CLIPS)
        tensors[f"adjacent_l2_{interval}"] = adjacent_l2(fast_BTHWC)
    return tensors


def through(vae: VideoAutoencoder, video_BTHWC: Tensor) -> Tensor:
    """Videos encoded and decoded; uint8 on the CPU."""
    return torch.cat([vae.decode(vae.encode(clip_BTHWC)).cpu() for clip_BTHWC in video_BTHWC.split(1)])


def real_settings(source: Source, vae_id: str) -> str:
    """Names all that the measures of real clips depend on."""
    return f"{source.name} {vae_id} {features_id()} {source.held_out_videos} held out"


@cache
def features_id() -> str:
    """Names the features of this module, whose numbers are not to be mixed with those of others."""
    return f"digits3d-{Digits3d.load().hash[:12]} grey8+edges4x1"


def load_or_compute(path: Path, settings: str, compute: Callable[[], Mapping[str, Tensor]]) -> Measures:
    """Measures on disk, or computed and saved; ``ValueError`` where those on disk are of other settings."""
    sidecar = path.with_suffix(".json")
    if path.is_file():
        known = json.loads(sidecar.read_text(encoding="utf-8"))["settings"] if sidecar.is_file() else "unknown settings"
        if known != settings:
            raise ValueError(f"{path}: measured with other settings ({known}); delete it, or name another --out")
        return load_file(path)
    # Frames are compared over thousands of rows, so half precision of a grey level is plenty.
    tensors = {
        name: value.to(torch.float16 if "grey_edges" in name else torch.float32).contiguous()
        for name, value in compute().items()
    }
    write_json(sidecar, {"settings": settings})
    write_tensors(path, tensors)
    return tensors


def model_id(pipe: MagiPipeline) -> str:
    """Names weights and sampling settings, so that measures of another model are not taken for this one's."""
    settings = hashlib.sha256(pipe.config.sampling.model_dump_json().encode()).hexdigest()
    return f"{weights_hash(pipe.model.state_dict())[:12]}-{settings[:4]}"
