"""Tensors out of an untrusted weight file, without running anything of it.

Safetensors are read here. A pickle or a TorchScript archive is read by a child process (``magi.untrusted.child``) that
may crash, hang or eat memory without harm; what it hands back is safetensors and JSON. POSIX only. Knows no network.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from magi.errors import CheckpointError
from magi.untrusted.child import Answer, call_in_child
from magi.weights import read_tensors


@dataclass(frozen=True)
class ReadLimits:
    """What the child process may use."""

    seconds: float = 600.0
    memory_bytes: int = 24 << 30
    """Of address space, of which the libraries themselves take several GB."""
    written_bytes: int = 4 << 30


@dataclass(frozen=True)
class UntrustedCheckpoint:
    """What was in a file: its tensors by name on the CPU, plain hyper-parameters, and how many tensors were left out.

    ``left_out`` counts the tensors without one of the wanted prefixes, by the first part of their names.
    """

    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    left_out: dict[str, int]


def read_untrusted(path: Path, prefixes: Sequence[str] = (), limits: ReadLimits | None = None) -> UntrustedCheckpoint:
    """Read safetensors, a torch checkpoint (a dictionary of tensors, also under ``state_dict``) or a TorchScript file.

    With ``prefixes``, only the tensors whose names start with one of them. ``CheckpointError`` for a file that is
    missing, damaged, asks for code, holds no tensors, or does not stay within ``limits``.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if _is_safetensors(path):
        tensors = {n: t for n, t in read_tensors(path).items() if not prefixes or n.startswith(tuple(prefixes))}
        return UntrustedCheckpoint(tensors, {}, {})
    with tempfile.TemporaryDirectory(prefix="magi-untrusted-") as folder:
        tensors_file = Path(folder) / "tensors.safetensors"
        answer = _ask_child(path, tensors_file, prefixes, limits or ReadLimits())
        if answer.refused:
            raise CheckpointError(f"{path}: {answer.refused}")
        return UntrustedCheckpoint(read_tensors(tensors_file), answer.hyper_parameters, answer.left_out)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _ask_child(path: Path, tensors_file: Path, prefixes: Sequence[str], limits: ReadLimits) -> Answer:
    """Run the child on one file; ``CheckpointError`` where it dies or takes too long."""
    request = {
        "checkpoint": os.path.abspath(path),
        "tensors_file": str(tensors_file),
        "prefixes": list(prefixes),
        "memory_bytes": limits.memory_bytes,
        "written_bytes": limits.written_bytes,
    }
    command, environment = call_in_child("magi.untrusted.child", request)
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=limits.seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{path}: not read after {limits.seconds:g} seconds; the file is refused") from None
    if child.returncode or not child.stdout:
        raise CheckpointError(
            f"{path}: the process that read it died (exit code {child.returncode}), within a memory limit of "
            f"{limits.memory_bytes / 1e9:.3g} GB; the file is refused"
        )
    return Answer(**json.loads(child.stdout))
