"""Weights on disk: safetensors and JSON alone, sizes and SHA-256 checked, pickles refused.

A checkpoint folder (``magi.training.checkpoint`` writes it) holds safetensors files, ``state.json`` and a
``manifest.json`` with the size and hash of each. One that is damaged or does not fit is skipped with a warning and the
newest good one taken. Knows no training and no sampling: both read through it.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magi.errors import CheckpointError, OtherRunError
from magi.files import CHECKPOINTS_FOLDER, MANIFEST_FILE, MODEL_FILE, atomic_write, read_text, utf8_name, write_json

MANIFEST_FORMAT = 1
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CHECKPOINT_FILES = (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE, STATE_FILE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What names a repository of the hub, ``owner/name``."""
_CHUNK = 1 << 22
_LISTED = 10
# What weights are stored in; float8 and complex numbers are not.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Found = TypeVar("Found")


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
        values = json.loads(read_text(path))
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
        with utf8_name(path) as name_of_file:
            return {name: tensor.clone() for name, tensor in load_file(name_of_file).items()}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({' '.join(str(error).split())[:120]})") from None


def download(hub_id: str, patterns: Sequence[str], asked: str) -> Path:
    """Folder of the files of a hub repository that match ``patterns``; ``ValueError`` names what was ``asked`` for."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{asked}: no such folder, and the hub did not provide it ({reason})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, as readable as other files; ``OSError`` of one line if the disk is full."""
    with atomic_write(path) as temporary:
        mode = temporary.stat().st_mode  # safetensors keeps others from reading what it writes
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: could not be written ({error}); free some space and start again") from None
        temporary.chmod(mode)


def write_manifest(folder: Path, names: Iterable[str]) -> Path:
    """Write the sizes and hashes of files of a folder beside them, for ``verify_manifest``."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    write_json(folder / MANIFEST_FILE, {"format": MANIFEST_FORMAT, "files": files})
    return folder / MANIFEST_FILE


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


def newest_good(run: Path, read: Callable[[Path], Found]) -> Found | None:
    """What ``read`` makes of the newest checkpoint of a run that it does not refuse; None if the run has none.

    One that it refuses by ``CheckpointError`` or that cannot be read is skipped with a warning that names it and the
    one used instead; ``CheckpointError`` if all are refused. The order is by step number; the file ``latest`` is for
    people and other programs.
    """
    refused: list[Exception] = []
    for folder in checkpoint_folders(run):
        try:
            found = read(folder)
        except OSError as error:
            refused.append(CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror or error})"))
        except CheckpointError as error:
            refused.append(error)
        else:
            if refused:
                warnings.warn(f"{refused[0]}; falling back to {folder.name}", stacklevel=2)
            return found
    if refused and isinstance(refused[0], OtherRunError):
        raise refused[0]
    if refused:
        raise CheckpointError(
            f"{refused[0]}; no good checkpoint is left in {run / CHECKPOINTS_FOLDER}; restore one or use a new run"
        )
    return None


def load_ema(run: Path, wanted: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The averaged (EMA) weights of a run's newest good checkpoint, float32, by parameter name.

    Where the state that they are ``wanted`` for is given, they must fit it. ``CheckpointError`` if there is none or all
    are refused.
    """

    def read(folder: Path) -> dict[str, Tensor]:
        verify_manifest(folder, (EMA_FILE,))
        tensors = read_tensors(folder / EMA_FILE)
        if wanted is not None:
            check_tensors(wanted, tensors, folder / EMA_FILE)
        return tensors

    found = newest_good(run, read)
    if found is None:
        raise CheckpointError(f"{run}: no checkpoint yet; train first, or give the folder of an export")
    return found


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.reshape(-1).data)
    return digest.hexdigest()


def check_tensors(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path, same_type: bool = True
) -> None:
    """Refuse ``tensors`` that are not ``wanted`` but for their values: names, shapes and types, and all of them finite.

    Without ``same_type`` any floating-point type stands for any other. ``CheckpointError`` lists up to 10 that are not.
    """
    missing = [f"{name} missing" for name in wanted if name not in tensors]
    extra = [f"{name} unknown" for name in tensors if name not in wanted]
    both = [(name, tensors[name], like) for name, like in wanted.items() if name in tensors]
    shapes = [
        f"{name} has {tuple(tensor.shape)}, the model {tuple(like.shape)}"
        for name, tensor, like in both
        if tensor.shape != like.shape
    ]
    types = [
        f"{name} is {tensor.dtype}, in the model {like.dtype}".replace("torch.", "")
        for name, tensor, like in both
        if tensor.dtype != like.dtype and (same_type or tensor.dtype not in _FLOATS or like.dtype not in _FLOATS)
    ]
    differing = shapes + missing + extra + types
    if differing:
        raise CheckpointError(
            f"{source}: weights of another architecture: {shortened(differing)}; use the config of its training"
        )
    broken = [name for name, tensor, _ in both if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(f"{source}: non-finite weights in {shortened(broken)}; use another checkpoint")


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load all ``tensors`` or none; ``CheckpointError`` lists up to 10 that do not fit or are not finite."""
    check_tensors(model.state_dict(), tensors, source, same_type=False)
    model.load_state_dict(dict(tensors), strict=True)


def shortened(items: Sequence[str]) -> str:
    """A list for a message: the first 10 items and how many more there are."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
