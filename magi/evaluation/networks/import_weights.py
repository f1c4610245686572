"""From a published weight file to the cache: identified, read, renamed, compared with the network, and written.

The order matters: size and hashes come first, and a file that is not known ends there unless the user allows it. What
was written is safetensors and a manifest with the identity of the file it came from. A TorchScript file is also kept
as it is, because it is a network of its own (its resize and padding differ from ours) and some scores need it.
"""

import json
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import magi
from magi.errors import CheckpointError
from magi.evaluation.networks.i3d import I3d
from magi.evaluation.networks.inception import Inception
from magi.evaluation.networks.lpips import Lpips, LpipsTrunk
from magi.evaluation.networks.published_files import (
    PROGRAM_FILE,
    TENSORS_FILE,
    FileIdentity,
    WeightKind,
    identify,
    source_record,
    weights_cache,
)
from magi.evaluation.networks.weight_names import i3d_names, lpips_head_names, lpips_trunk_names, without_counters
from magi.files import MANIFEST_FILE
from magi.untrusted.foreign_file import file_format, read_foreign
from magi.weights import FORMAT, sha256, shortened

Shapes = dict[str, tuple[int, ...]]
_LPIPS_TRUNKS: dict[WeightKind, LpipsTrunk] = {
    "alexnet": "alex",
    "lpips-alex": "alex",
    "vgg16": "vgg",
    "lpips-vgg": "vgg",
}


@dataclass(frozen=True)
class Imported:
    """What was imported: its folder in the cache, the file's identity, tensors kept, and whether as a program too."""

    folder: Path
    source: FileIdentity
    tensors: int
    program: bool


def import_weights(kind: WeightKind, path: Path, allow_unknown: bool = False, cache: Path | None = None) -> Imported:
    """Check, convert and keep one weight file; an earlier import of the same kind is replaced.

    ``CheckpointError`` for a file that is unknown (unless allowed), unreadable, or of another network.
    """
    source = identify(path, kind, allow_unknown)
    program = file_format(path) == "torchscript"
    if program != (kind == "i3d-torchscript"):
        found = "a TorchScript program" if program else "not a TorchScript program"
        raise CheckpointError(f"{path}: {found}; import it as {'i3d-torchscript' if program else 'i3d'}")
    tensors = _tensors(kind, path)
    if sha256(path) != source.sha256:
        raise CheckpointError(f"{path}: changed while it was read; import it again")
    folder = (cache or weights_cache()) / kind
    _write(folder, kind, source, tensors, path if program else None)
    if not source.known:
        warnings.warn(f"{path.name}: unknown file, imported because allowed; every score will say so", stacklevel=2)
    return Imported(folder, source, len(tensors), program)


def expected_shapes(kind: WeightKind) -> Shapes:
    """Names and shapes of all tensors that the network of ``kind`` needs, from the network itself."""
    with torch.device("meta"):  # shapes without memory
        if kind in ("i3d", "i3d-torchscript"):
            network: torch.nn.Module = I3d()
        elif kind == "inception":
            network = Inception()
        else:
            network = Lpips(_LPIPS_TRUNKS[kind])
    prefix = {"alexnet": "features.", "vgg16": "features.", "lpips-alex": "lin", "lpips-vgg": "lin"}.get(kind, "")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name.startswith(prefix)}


def _tensors(kind: WeightKind, path: Path) -> dict[str, Tensor]:
    """The file's tensors under our names, float32, every one compared with the network's."""
    found = read_foreign(path)
    if kind in ("i3d", "i3d-torchscript"):
        ours = i3d_names(found)
    elif kind == "inception":
        ours = without_counters(found)
    elif kind in ("alexnet", "vgg16"):
        ours = lpips_trunk_names(found)
    else:
        ours = lpips_head_names(found)
    wrong = _differences(ours, expected_shapes(kind))
    if wrong and kind == "i3d-torchscript":  # its program can run all the same
        warnings.warn(
            f"{path.name}: kept as a program only, its tensors are not I3D's: {shortened(wrong)}", stacklevel=3
        )
        return {}
    if wrong:
        raise CheckpointError(f"{path}: not the weights of {kind}: {shortened(wrong)}; use the published file")
    return {name: tensor.float().contiguous() for name, tensor in ours.items()}


def _differences(found: dict[str, Tensor], expected: Shapes) -> list[str]:
    """What keeps the tensors from being those of the network, one phrase each."""
    wrong = [f"{name} missing" for name in expected if name not in found]
    wrong += [f"{name} unknown" for name in found if name not in expected]
    for name, tensor in found.items():
        if name not in expected:
            continue
        if tuple(tensor.shape) != expected[name]:
            wrong.append(f"{name} has {tuple(tensor.shape)}, the network {expected[name]}")
        elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            wrong.append(f"{name} is not finite floating point")
        elif (name.endswith("running_var") or name.startswith("lin")) and bool((tensor < 0).any()):
            wrong.append(f"{name} has negative values")
    return wrong


def _write(
    folder: Path, kind: WeightKind, source: FileIdentity, tensors: dict[str, Tensor], program: Path | None
) -> None:
    """Write beside, then rename: the cache holds a whole import or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        if tensors:
            save_file(tensors, fresh / TENSORS_FILE)
        if program is not None:
            shutil.copyfile(program, fresh / PROGRAM_FILE)
        write_manifest(fresh, kind, source)
        if folder.exists():
            os.rename(folder, Path(scratch) / "old")
        os.rename(fresh, folder)


def write_manifest(folder: Path, kind: WeightKind, source: FileIdentity) -> None:
    """Write ``manifest.json`` for the files in ``folder``: their sizes and hashes, and where they came from."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name in (TENSORS_FILE, PROGRAM_FILE)
    }
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "source": source_record(source),
        "files": files,
        "versions": {"magi": magi.__version__, "torch": torch.__version__},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
