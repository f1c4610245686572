"""Published weight files that the user supplies: which are known, by size and hash, and where imported ones are kept.

Nothing is downloaded. ``magi evaluate import-weights KIND FILE`` checks a file's size and SHA-256 against the table
here before anything parses it (``magi.evaluation.networks.import_weights``), and keeps it as safetensors with a
manifest, below ``MAGI_CACHE`` or ``~/.cache/magi``. Scores carry the hash of the file that the user gave. Knows no
network.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from magi.errors import CheckpointError
from magi.files import MANIFEST_FILE
from magi.weights import read_json, read_tensors, verify_manifest

WeightKind = Literal["i3d", "i3d-torchscript", "inception", "alexnet", "vgg16", "lpips-alex", "lpips-vgg"]
WEIGHT_KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
TENSORS_FILE = "tensors.safetensors"
LARGEST_FILE = 2 << 30


@dataclass(frozen=True)
class PublishedFile:
    """One file as its authors published it; a field that nobody has published is empty."""

    file: str
    origin: str
    bytes: int | None = None
    sha256: str = ""
    git_blob: str = ""  # SHA-1 of git's object of the file, where a repository holds it and nobody gives a SHA-256


PUBLISHED: dict[WeightKind, PublishedFile] = {
    "i3d": PublishedFile(
        "i3d_pretrained_400.pt",
        "the TATS repository (tats/fvd), converted from DeepMind's TF-Hub module by VideoGPT",
        git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
    ),
    "i3d-torchscript": PublishedFile(
        "i3d_torchscript.pt",
        "StyleGAN-V's link",
        51_235_320,
        "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    ),
    "inception": PublishedFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "releases of pytorch-fid, or of torch-fidelity as weights-inception-2015-12-05-6726825d.pth",
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "alexnet": PublishedFile(
        "alexnet-owt-7be5be79.pth",
        "torchvision's AlexNet, ImageNet-1k version 1",
        244_408_911,
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg16": PublishedFile(
        "vgg16-397923af.pth",
        "torchvision's VGG16, ImageNet-1k version 1",
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "lpips-alex": PublishedFile(
        "alex.pth",
        "the PerceptualSimilarity repository (lpips/weights/v0.1)",
        6_009,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "lpips-vgg": PublishedFile(
        "vgg.pth",
        "the PerceptualSimilarity repository (lpips/weights/v0.1)",
        7_289,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}


@dataclass(frozen=True)
class FileIdentity:
    """What a file is by its bytes alone, and whether that is a published file of its kind."""

    file: str
    bytes: int
    sha256: str
    git_blob: str
    known: bool


@dataclass(frozen=True)
class StoredWeights:
    """Weights that were imported: where they are, and the identity of the file that they came from."""

    kind: WeightKind
    folder: Path
    source: FileIdentity

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, float32 on the CPU; ``CheckpointError`` where the file is damaged."""
        return read_tensors(self.folder / TENSORS_FILE)


def weights_cache() -> Path:
    """Where imported weights are kept: ``weights`` below ``$MAGI_CACHE``, or below ``~/.cache/magi``."""
    given = os.environ.get("MAGI_CACHE", "")
    return (Path(given) if given else Path.home() / ".cache" / "magi") / "weights"


def identify(path: Path, kind: WeightKind, allow_unknown: bool = False) -> FileIdentity:
    """Size and hashes of a file, compared with the published ones; nothing of it is parsed.

    ``CheckpointError`` for a file that is not a published one of ``kind``, unless ``allow_unknown``; always for one
    that is published as another kind, is empty, or is above 2 GiB.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    size = path.stat().st_size
    if not 0 < size <= LARGEST_FILE:
        raise CheckpointError(f"{path}: {size} bytes; a weight file has between 1 and {LARGEST_FILE}")
    sha256, git_blob = _hashes(path, size)
    matches = {
        other
        for other, file in PUBLISHED.items()
        if file.bytes in (None, size) and (file.sha256 == sha256 if file.sha256 else file.git_blob == git_blob)
    }
    if matches and kind not in matches:
        other = sorted(matches)[0]
        raise CheckpointError(f"{path}: this is the published file of kind {other}; import it as {other}, not {kind}")
    if not matches and not allow_unknown:
        raise CheckpointError(f"{path}: not a published {kind} file: {_difference(kind, size, sha256)}; {_ADVICE}")
    return FileIdentity(path.name, size, sha256, git_blob, known=bool(matches))


_ADVICE = "use the published file, or --allow-unknown to import it anyway, which every score will say"


def stored_weights(kind: WeightKind, cache: Path | None = None) -> StoredWeights:
    """The imported weights of ``kind``, sizes and hashes checked again; ``CheckpointError`` says what is missing."""
    folder = (cache or weights_cache()) / kind
    if not (folder / MANIFEST_FILE).is_file():
        file = PUBLISHED[kind]
        raise CheckpointError(
            f"{kind}: weights not imported; get {file.file} ({file.origin}), then run "
            f"'magi evaluate import-weights {kind} FILE'"
        )
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("kind") != kind or TENSORS_FILE not in manifest.get("files", {}):
        raise CheckpointError(f"{folder / MANIFEST_FILE}: not a manifest of {kind} weights; import them again")
    verify_manifest(folder, [TENSORS_FILE])
    try:
        source = FileIdentity(**manifest["source"])
    except (KeyError, TypeError):
        raise CheckpointError(f"{folder / MANIFEST_FILE}: damaged 'source'; import the weights again") from None
    return StoredWeights(kind, folder, source)


def has_weights(kind: WeightKind, cache: Path | None = None) -> bool:
    """Whether weights of ``kind`` were imported; their state is checked when they are used."""
    return ((cache or weights_cache()) / kind / MANIFEST_FILE).is_file()


def _hashes(path: Path, size: int) -> tuple[str, str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        return sha256, hashlib.file_digest(file, lambda: blob).hexdigest()


def _difference(kind: WeightKind, size: int, sha256: str) -> str:
    """How the file differs from the published one of its kind: by size if it does, else by hash."""
    published = PUBLISHED[kind]
    if published.bytes is not None and published.bytes != size:
        return f"{size} bytes where {published.file} has {published.bytes}"
    expected = f"SHA-256 {published.sha256[:12]}..." if published.sha256 else f"git blob {published.git_blob[:12]}..."
    return f"SHA-256 {sha256[:12]}... is not that of {published.file} ({expected})"
