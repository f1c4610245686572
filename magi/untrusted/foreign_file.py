"""Tensors out of a stranger's .pt file, read in a child process that may crash, hang or eat memory without harm.

The child unpickles with torch's restricted reader (``weights_only=True``: tensors and plain containers, no code) or,
for TorchScript, asks the archive for its state without calling it; it writes safetensors and goes. The parent reads
those and trusts nothing else. Files are identified by hash before they come here
(``magi.evaluation.networks.published_files``). POSIX only. Knows no network and no kind of weights.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from magi.errors import CheckpointError
from magi.weights import read_tensors

FileFormat = Literal["safetensors", "state-dict", "torchscript"]
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_SECONDS = 120.0
_SECONDS_PER_MEGABYTE = 0.2
_MEMORY = 16 << 30  # address space, most of it torch's own libraries
_REASON = 200  # characters of the child's complaint that are shown


def file_format(path: Path) -> FileFormat:
    """What kind of file this is, by its first bytes and the names in its archive; ``CheckpointError`` for neither."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: a damaged archive ({' '.join(str(error).split())[:80]})") from None
        return "torchscript" if any("/code/" in f"/{name}" for name in names) else "state-dict"
    if start[:1] == b"\x80":
        return "state-dict"
    if start[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(f"{path}: neither safetensors nor a torch file, or truncated")


def read_foreign(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file of any of the formats, by name, on the CPU.

    ``CheckpointError`` where the file is damaged, holds anything but a flat dictionary of tensors, or makes the child
    die; the message has the reason.
    """
    found = file_format(path)
    if found == "safetensors":
        return read_tensors(path)
    with tempfile.TemporaryDirectory(prefix="magi-weights-") as scratch:
        written = Path(scratch) / "tensors.safetensors"
        _run_child(path, written, found)
        return read_tensors(written)


def _run_child(path: Path, written: Path, found: FileFormat) -> None:
    size = path.stat().st_size
    seconds = _SECONDS + _SECONDS_PER_MEGABYTE * size / 1e6
    request = {"path": str(path.absolute()), "out": str(written), "format": found, "bytes": size}
    paths = [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    # -P keeps the caller's working directory out of the child's imports.
    code = "from magi.untrusted.foreign_file import convert; convert()"
    command = [sys.executable, "-P", "-c", code, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, env=environment, start_new_session=True)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: not read after {seconds:.0f} seconds; refused") from None
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").split()
        reason = " ".join(said)[:_REASON] or f"the reading process ended with code {done.returncode}"
        raise CheckpointError(f"{path}: cannot be read safely: {reason}")


def convert() -> None:
    """The child's side: read one file, write its tensors, or print one line and leave with code 1."""
    request = json.loads(sys.argv[1])
    size = int(request["bytes"])
    for kind, value in (
        (resource.RLIMIT_AS, _MEMORY + 4 * size),
        (resource.RLIMIT_FSIZE, 2 * size + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))
    try:
        tensors = _flat_tensors(_read(Path(request["path"]), request["format"]))
        save_file(tensors, request["out"])
    except Exception as error:  # whatever a stranger's file does to torch's reader ends here, as one line
        sys.stdout.write(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        sys.stdout.flush()
        os._exit(1)


def _read(path: Path, found: FileFormat) -> Any:
    if found == "torchscript":
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat_tensors(values: Any) -> dict[str, Tensor]:
    """A flat dictionary of tensors, each with memory of its own; ``ValueError`` for anything else."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"expected a dictionary of tensors, found {type(values).__name__}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"expected a flat dictionary of tensors, found {type(value).__name__} under {name!r}")
    return {name: value.detach().to("cpu").contiguous().clone() for name, value in values.items()}
