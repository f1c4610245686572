"""Claims: a file is known by its bytes before anything parses it; unknown ones are refused, changed ones noticed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi.errors import CheckpointError
from magi.evaluation.networks.import_weights import write_manifest
from magi.evaluation.networks.published_files import (
    PUBLISHED,
    TENSORS_FILE,
    WEIGHT_KINDS,
    FileIdentity,
    PublishedFile,
    has_weights,
    identify,
    stored_weights,
    weights_cache,
)

BYTES = b"not even a weight file"
SHA256 = hashlib.sha256(BYTES).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob 22\0" + BYTES).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given.pth"
    path.write_bytes(BYTES)
    return path


def publish(monkeypatch: pytest.MonkeyPatch, kind: str, **fields: object) -> None:
    monkeypatch.setitem(PUBLISHED, kind, PublishedFile("published.pth", "somewhere", **fields))  # type: ignore


def test_every_kind_has_a_published_identity() -> None:
    assert set(PUBLISHED) == set(WEIGHT_KINDS)
    for file in PUBLISHED.values():
        assert file.sha256 or file.git_blob
        assert all(set(digest) <= set("0123456789abcdef") for digest in (file.sha256, file.git_blob))
        assert len(file.sha256) in (0, 64) and len(file.git_blob) in (0, 40)
        assert file.bytes is not None or not file.sha256


def test_a_known_file_is_known_by_size_and_sha256(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "inception", bytes=22, sha256=SHA256)
    assert identify(file, "inception") == FileIdentity("given.pth", 22, SHA256, GIT_BLOB, known=True)


def test_where_nobody_gives_a_sha256_git_s_id_of_the_file_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "i3d", git_blob=GIT_BLOB)
    assert identify(file, "i3d").known
    publish(monkeypatch, "i3d", git_blob="0" * 40)
    with pytest.raises(CheckpointError, match="git blob 000000000000"):
        identify(file, "i3d")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bytes": 23, "sha256": SHA256}, "22 bytes where published.pth has 23"),
        ({"bytes": 22, "sha256": "0" * 64}, f"SHA-256 {SHA256[:12]}... is not that of published.pth"),
    ],
)
def test_an_unknown_file_is_refused_unless_allowed_and_then_recorded(
    fields: dict[str, object], words: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "inception", **fields)
    with pytest.raises(CheckpointError, match=words) as error:
        identify(file, "inception")
    assert "\n" not in str(error.value) and "--allow-unknown" in str(error.value)
    allowed = identify(file, "inception", allow_unknown=True)
    assert not allowed.known and allowed.sha256 == SHA256


def test_a_file_published_as_another_kind_is_refused_even_if_allowed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "vgg16", bytes=22, sha256=SHA256)
    with pytest.raises(CheckpointError, match="published file of kind vgg16; import it as vgg16, not alexnet"):
        identify(file, "alexnet", allow_unknown=True)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for path, words in ((tmp_path / "none", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(CheckpointError, match=words):
            identify(path, "i3d", allow_unknown=True)
    with pytest.raises(CheckpointError, match="0 bytes"):
        identify(tmp_path / "empty", "i3d", allow_unknown=True)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGI_CACHE", "/somewhere")
    assert weights_cache() == Path("/somewhere/weights")
    monkeypatch.setenv("MAGI_CACHE", "")
    assert weights_cache() == Path.home() / ".cache" / "magi" / "weights"


# What was imported


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with something imported as vgg16."""
    folder = tmp_path / "cache" / "vgg16"
    folder.mkdir(parents=True)
    save_file({"features.0.bias": torch.arange(4.0)}, folder / TENSORS_FILE)
    write_manifest(folder, "vgg16", FileIdentity("given.pth", 22, SHA256, GIT_BLOB, known=False))
    return tmp_path / "cache"


def test_stored_weights_come_back_with_their_source(cache: Path) -> None:
    stored = stored_weights("vgg16", cache)
    assert stored.source.sha256 == SHA256 and not stored.source.known
    assert torch.equal(stored.tensors()["features.0.bias"], torch.arange(4.0))
    assert has_weights("vgg16", cache) and not has_weights("alexnet", cache)


def test_missing_weights_name_the_file_and_the_command(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"alexnet-owt-7be5be79\.pth .* import-weights alexnet FILE") as error:
        stored_weights("alexnet", cache)
    assert "\n" not in str(error.value)


def test_a_changed_file_is_noticed(cache: Path) -> None:
    path = cache / "vgg16" / TENSORS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256 is not the manifest's"):
        stored_weights("vgg16", cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "alexnet"}, "not a manifest of vgg16"),
        ({"files": {}}, "not a manifest of vgg16"),
        ({"source": {"file": "x"}}, "damaged 'source'"),
        ({"format": 99}, "format 99"),
    ],
)
def test_a_foreign_manifest_is_refused(change: dict[str, object], words: str, cache: Path) -> None:
    path = cache / "vgg16" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=words):
        stored_weights("vgg16", cache)
