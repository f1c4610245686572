"""Reads weights back from disk, safely: safetensors and JSON alone, sizes and SHA-256 checked, pickles refused.

A checkpoint folder (``magi.training.checkpoint`` writes it) holds safetensors files, ``state.json`` and a
``manifest.json`` with the size and hash of each. A damaged one is skipped with a warning and the newest intact one
taken. Knows no training and no sampling: both read through it.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from magi.errors import CheckpointError
from magi.files import CHECKPOINTS_FOLDER, MANIFEST_FILE, MODEL_FILE

MANIFEST_FORMAT = 1
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CHECKPOINT_FILES = (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE, STATE_FILE)
_CHUNK = 1 << 22
_LISTED = 10


def step_folder(step: int) -> str:
    """Name of the folder of the checkpoint after ``step`` steps, so that names sort by step."""
    return f"step-{step:09d}"


def step_of(folder: Path) -> int:
    """The step in a folder's name; -1 for a folder of another name."""
    prefix, _, digits = folder.name.partition("-")
    return int(digits) if prefix == "step" and digits.isascii() and digits.isdigit() else -1


def checkpoint_folders(run: Path) -> list[Path]:
    """The finished checkpoints of a run, newest first; unfinished ones have another name and are left out."""
    folders = [entry for entry in (run / CHECKPOINTS_FOLDER).glob("step-*") if entry.is_dir() and step_of(entry) >= 0]
    return sorted(folders, key=step_of, reverse=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``CheckpointError`` if it is missing, damaged or something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); use another checkpoint") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: damaged, not readable as JSON; use another checkpoint") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged, expected a JSON object; use another checkpoint")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    ``CheckpointError`` if the file is missing, truncated, or of another kind. A pickle under this name is refused by
    its format: nothing here can run code, and there is no second way of reading.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    with path.open("rb") as file:
        start = file.read(9)
    # Safetensors begin with the length of their header, whose first byte may be that of a pickle: one in 32 has 0x80.
    holds_header = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size
    if not holds_header and (start[:1] == b"\x80" or start[:2] == b"PK"):
        raise CheckpointError(
            f"{path}: a pickle or zip archive, not safetensors; refused, because loading it can run code"
        )
    if len(start) < 9 or start[8:9] != b"{":
        raise CheckpointError(f"{path}: not a safetensors file, or truncated; use another checkpoint")
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({' '.join(str(error).split())[:120]})") from None


def verify_manifest(folder: Path, files_wanted: Iterable[str] = CHECKPOINT_FILES) -> None:
    """Check sizes and SHA-256 of a checkpoint's files; ``CheckpointError`` names the first bad one."""
    manifest = read_json(folder / MANIFEST_FILE)
    version = manifest.get("format")
    if version != MANIFEST_FORMAT:
        raise CheckpointError(f"{folder}: format {version!r}, this version reads {MANIFEST_FORMAT}; update magi")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST_FILE}: damaged, no list of files; use another checkpoint")
    for name in files_wanted:
        entry = files.get(name)
        if not isinstance(entry, dict):
            raise CheckpointError(f"{folder / MANIFEST_FILE}: damaged entry for {name!r}; use another checkpoint")
        _verify_file(folder / name, entry)


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; use another checkpoint")
    size = path.stat().st_size
    if size != entry.get("bytes"):
        raise CheckpointError(f"{path}: damaged, {size} bytes where the manifest has {entry.get('bytes')}")
    if sha256(path) != entry.get("sha256"):
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the manifest's")


def newest_intact(run: Path, files_wanted: Sequence[str] = CHECKPOINT_FILES) -> Path | None:
    """The newest checkpoint of a run that is intact; None if the run has none.

    A damaged one is skipped with a warning that names it and the one used instead; ``CheckpointError`` if all are
    damaged. The order is by step number; the file ``latest`` is for people and other programs.
    """
    damage: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            verify_manifest(folder, files_wanted)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            warnings.warn(f"{damage[0]}; falling back to {folder.name}", stacklevel=2)
        return folder
    if damage:
        raise CheckpointError(
            f"{damage[0]}; no good checkpoint is left in {run / CHECKPOINTS_FOLDER}; restore one or use a new run"
        )
    return None


def load_ema(run: Path) -> dict[str, Tensor]:
    """The averaged (EMA) weights of a run's newest intact checkpoint, float32, by parameter name.

    ``CheckpointError`` if there is none or all are damaged.
    """
    folder = newest_intact(run, files_wanted=(EMA_FILE,))
    if folder is None:
        raise CheckpointError(f"{run}: no checkpoint yet; train first, or give the folder of an export")
    return read_tensors(folder / EMA_FILE)


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.reshape(-1).data)
    return digest.hexdigest()


def differing_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``tensors`` from being the state of ``model``, one phrase a tensor; empty if they fit."""
    wanted = model.state_dict()
    missing = [f"{name} missing" for name in wanted if name not in tensors]
    extra = [f"{name} unknown" for name in tensors if name not in wanted]
    shapes = [
        f"{name} has {tuple(tensors[name].shape)}, the model {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    return shapes + missing + extra


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load all ``tensors`` or none; ``CheckpointError`` lists up to 10 that do not fit or are not finite."""
    differing = differing_tensors(model, tensors)
    if differing:
        raise CheckpointError(
            f"{source}: weights of another architecture: {shortened(differing)}; use the config of its training"
        )
    broken = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise CheckpointError(f"{source}: non-finite weights in {shortened(broken)}; use another checkpoint")
    model.load_state_dict(dict(tensors), strict=True)


def shortened(items: Sequence[str]) -> str:
    """A list for a message: the first 10 items and how many more there are."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
