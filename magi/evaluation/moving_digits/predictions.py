"""A model's continuations of real clips, which are kept, and its autoencoder's reconstructions of them.

A continuation is kept lossless (safetensors, uint8) under a name that holds everything it depends on: model and
autoencoder, sampling settings, frames, seed, and the pixels of the context. So a call that was stopped goes on where it
was, and other settings never meet an old file. Knows no oracles.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import magi
from magi.evaluation.moving_digits.ground_truth import RealClip
from magi.sampling.pipeline import MagiPipeline

RECONSTRUCTED = "vae"

Progress = Callable[[str, int, int], None]
"""Is told (what is being done, done, all)."""


def reconstructions(
    models: Mapping[str, MagiPipeline], clips: list[RealClip], batch: int, tell: Progress
) -> dict[str, NDArray[np.uint8]]:
    """Every autoencoder's reconstruction of the real clips: 'vae', or 'vae NAME' where models have several."""
    users: dict[str, list[str]] = {}
    for name, model in models.items():
        users.setdefault(model.vae.id, []).append(name)
    series = {}
    for names in users.values():
        model, found = models[names[0]], []
        for start in range(0, len(clips), batch):
            tell("reconstructing", start, len(clips))
            found.append(_reconstruct(model, np.stack([clip.video_THWC for clip in clips[start : start + batch]])))
        tell("reconstructing", len(clips), len(clips))
        series[RECONSTRUCTED if len(users) == 1 else f"{RECONSTRUCTED} {names[0]}"] = np.concatenate(found)
    return series


def _reconstruct(model: MagiPipeline, video_BTHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    device = next(model.model.parameters()).device
    decoded: NDArray[np.uint8] = (
        model.vae.decode(model.vae.encode(torch.from_numpy(video_BTHWC).to(device))).cpu().numpy()
    )
    return decoded


def continuations(
    name: str,
    model: MagiPipeline,
    clips: list[RealClip],
    cache: Path,
    settings: dict[str, Any],
    batch: int,
    tell: Progress,
) -> NDArray[np.uint8]:
    """Video_BTHWC of ``clips`` continued by ``model``; what lies in ``cache`` is reused, the rest is put there."""
    frames, context = settings["frames"], settings["context"]
    seeds, described = [settings["seed"] + number for number in range(len(clips))], describe(model)
    paths = [_cache_path(cache, described, clip, seed, settings) for clip, seed in zip(clips, seeds, strict=True)]
    videos = [_read_cached(path, clip.video_THWC.shape) for path, clip in zip(paths, clips, strict=True)]
    missing = [number for number, video in enumerate(videos) if video is None]
    total, done = len(missing) * (frames - context), 0
    for start in range(0, len(missing), batch):
        numbers = missing[start : start + batch]
        context_BTHWC = torch.from_numpy(np.stack([clips[number].video_THWC[:context] for number in numbers]))
        stream = model.stream(
            frames=frames,
            context=context_BTHWC,
            labels=[clips[number].label for number in numbers] if settings["labels"] else None,
            seeds=[seeds[number] for number in numbers],
        )
        parts = [context_BTHWC.numpy()]
        for frame_BHWC in stream:
            parts.append(frame_BHWC.cpu().numpy()[:, None])
            done += len(numbers)
            tell(f"{name}: generating", done, total)
        for number, video_THWC in zip(numbers, np.concatenate(parts, axis=1), strict=True):
            _write_cached(paths[number], video_THWC)
            videos[number] = video_THWC
    return np.stack([video for video in videos if video is not None])


def describe(model: MagiPipeline) -> dict[str, Any]:
    """What a model's figures depend on: its id, its autoencoder's and its sampling settings."""
    return {"id": _weights_id(model), "vae": model.vae.id, "sampling": model.config.sampling.model_dump(mode="json")}


def _weights_id(model: MagiPipeline) -> str:
    digest = hashlib.sha256(model.config.model.model_dump_json().encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return f"magi-{digest.hexdigest()[:16]}"


def _cache_path(cache: Path, model: dict[str, Any], clip: RealClip, seed: int, settings: dict[str, Any]) -> Path:
    depends_on = {
        "magi": magi.__version__,
        "model": model,
        "context": hashlib.sha256(clip.video_THWC[: settings["context"]].tobytes()).hexdigest(),
        "label": clip.label if settings["labels"] else None,
        "frames": settings["frames"],
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return cache / f"{clip.name}-{key}.safetensors"


def _read_cached(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The video kept at ``path``, None where there is none or the file is damaged."""
    try:
        video_THWC: NDArray[np.uint8] = load_file(path)["video_THWC"]
    except (OSError, KeyError, SafetensorError):
        return None
    return video_THWC if video_THWC.shape == shape and video_THWC.dtype == np.uint8 else None


def _write_cached(path: Path, video_THWC: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file({"video_THWC": np.ascontiguousarray(video_THWC)}, beside)
    os.replace(beside, path)
