"""From a published weight file to the cache: identified, read, renamed, compared with the network, and written.

The order matters: size and hashes come first, and a file that is not known ends there unless the user allows it.
Whatever it is, it is parsed and never run (``magi.untrusted.reader``). What is written is safetensors and a manifest
with the identity of the file it came from.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import magi
from magi.errors import CheckpointError
from magi.evaluation.networks.i3d import I3d
from magi.evaluation.networks.inception import Inception
from magi.evaluation.networks.lpips import Lpips
from magi.evaluation.networks.published_files import TENSORS_FILE, FileIdentity, WeightKind, identify, weights_cache
from magi.files import MANIFEST_FILE, write_json
from magi.untrusted.reader import read_untrusted
from magi.untrusted.torchscript import is_torchscript
from magi.weights import MANIFEST_FORMAT, sha256, shortened, write_tensors

Shapes = dict[str, tuple[int, ...]]
_NETWORKS: dict[WeightKind, tuple[Callable[[], nn.Module], str]] = {
    "i3d": (I3d, ""),
    "i3d-torchscript": (I3d, ""),
    "inception": (Inception, ""),
    "alexnet": (lambda: Lpips("alex"), "features."),
    "vgg16": (lambda: Lpips("vgg"), "features."),
    "lpips-alex": (lambda: Lpips("alex"), "lin"),
    "lpips-vgg": (lambda: Lpips("vgg"), "lin"),
}
"""Kind of weights -> the network that has them, and how the names of its part of them begin."""
# The TorchScript file has the names of another port of I3D.
_BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}


@dataclass(frozen=True)
class ImportedWeights:
    """What was imported: its folder in the cache, the file's identity, and how many tensors were written."""

    folder: Path
    source: FileIdentity
    tensors: int


def import_weights(
    kind: WeightKind, path: Path, allow_unknown: bool = False, cache: Path | None = None
) -> ImportedWeights:
    """Check, convert and keep one weight file; an earlier import of the same kind is replaced.

    ``CheckpointError`` for a file that is unknown (unless allowed), unreadable, or of another network.
    """
    source = identify(path, kind, allow_unknown)
    if kind == "i3d" and is_torchscript(path):
        raise CheckpointError(f"{path}: a TorchScript file; import it as i3d-torchscript")
    tensors = _tensors(kind, path)
    if sha256(path) != source.sha256:
        raise CheckpointError(f"{path}: changed while it was read; import it again")
    folder = (cache or weights_cache()) / kind
    _write(folder, kind, source, tensors)
    if not source.known:
        warnings.warn(f"{path.name}: unknown file, imported because allowed; every score will say so", stacklevel=2)
    return ImportedWeights(folder, source, len(tensors))


def expected_shapes(kind: WeightKind) -> Shapes:
    """Names and shapes of all tensors that the network of ``kind`` needs, from the network itself."""
    build, prefix = _NETWORKS[kind]
    with torch.device("meta"):  # shapes without memory
        network = build()
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if name.startswith(prefix)}


def our_name(name: str) -> str:
    """The name in our networks of a tensor in a published file; a name that no rule knows comes back as it is."""
    name = re.sub(r"^conv3d_0c_1x1\.", "logits.", name)
    name = re.sub(r"^conv3d_(\d[abc]_\dx\d)\.", r"Conv3d_\1.", name)
    mixed = re.fullmatch(r"mixed_([345][b-f])\.branch_(0|[12]\.[01]|3\.1)\.(.*)", name)
    if mixed:
        name = f"Mixed_{mixed[1]}.{_BRANCHES[mixed[2]]}.{mixed[3]}"
    return name.replace(".batch3d.", ".bn.")


def _tensors(kind: WeightKind, path: Path) -> dict[str, Tensor]:
    """The file's tensors under our names, float32, every one compared with the network's."""
    # Counters of batch norms are never read in evaluation; LPIPS uses the convolutions of its trunks alone.
    ours = {
        our_name(name): tensor
        for name, tensor in read_untrusted(path).tensors.items()
        if not name.endswith(".num_batches_tracked")
        and not (kind in ("alexnet", "vgg16") and name.startswith("classifier."))
    }
    wrong = _differences(ours, expected_shapes(kind))
    if wrong:
        raise CheckpointError(f"{path}: not the weights of {kind}: {shortened(wrong)}; use the published file")
    return {name: tensor.float().contiguous() for name, tensor in ours.items()}


def _differences(found: dict[str, Tensor], expected: Shapes) -> list[str]:
    """What keeps the tensors from being those of the network, one phrase each."""
    wrong = [f"{name} missing" for name in expected if name not in found]
    for name, tensor in found.items():
        if name not in expected:
            wrong.append(f"{name} unknown")
        elif tuple(tensor.shape) != expected[name]:
            wrong.append(f"{name} has {tuple(tensor.shape)}, the network {expected[name]}")
        elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            wrong.append(f"{name} is not finite floating point")
        elif (name.endswith("running_var") or name.startswith("lin")) and bool((tensor < 0).any()):
            wrong.append(f"{name} has negative values")
    return wrong


def _write(folder: Path, kind: WeightKind, source: FileIdentity, tensors: dict[str, Tensor]) -> None:
    """The manifest goes first and comes last: without it nothing counts as imported."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    write_tensors(folder / TENSORS_FILE, tensors)
    write_manifest(folder, kind, source)


def write_manifest(folder: Path, kind: WeightKind, source: FileIdentity) -> None:
    """Write ``manifest.json`` for the tensors in ``folder``: their size and hash, and where they came from."""
    path = folder / TENSORS_FILE
    manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "source": asdict(source),
        "files": {TENSORS_FILE: {"bytes": path.stat().st_size, "sha256": sha256(path)}},
        "versions": {"magi": magi.__version__, "torch": torch.__version__},
    }
    write_json(folder / MANIFEST_FILE, manifest)
