"""Claims: the verb imports weights, and every mistake is one line and an exit code."""

import hashlib
import json
import typing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi.cli import evaluate
from magi.cli.main import main
from magi.errors import CheckpointError
from magi.evaluation.networks.published_files import PUBLISHED, WEIGHT_KINDS, PublishedFile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A look-alike of LPIPS heads, of unknown hash."""
    shapes = zip(range(5), (64, 192, 384, 256, 256), strict=True)
    save_file({f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in shapes}, tmp_path / "heads.safetensors")
    return tmp_path / "heads.safetensors"


def run(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_the_command_line_knows_every_kind() -> None:
    assert typing.get_args(evaluate.Kind) == WEIGHT_KINDS


def test_a_published_file_is_imported(
    heads: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(heads.read_bytes()).hexdigest()
    file = PublishedFile(heads.name, "here", heads.stat().st_size, digest)
    monkeypatch.setitem(PUBLISHED, "lpips-alex", file)
    assert run("import-weights", "lpips-alex", heads) == 0
    out = capsys.readouterr().out
    assert "published file" in out and digest in out and "5 tensors" in out
    manifest = json.loads((cache / "lpips-alex" / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == digest and manifest["source"]["known"] is True


def test_an_unknown_file_is_refused_unless_allowed(
    heads: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import-weights", "lpips-alex", heads) == CheckpointError.exit_code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "alex.pth has 6009" in err and not cache.exists()
    assert run("import-weights", "lpips-alex", heads, "--allow-unknown") == 0
    said = capsys.readouterr()
    assert "UNKNOWN file, allowed" in said.out and "magi: warning: heads.safetensors: unknown file" in said.err
    assert json.loads((cache / "lpips-alex" / "manifest.json").read_text())["source"]["known"] is False


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("import-weights", "c3d", "x"), 2, "c3d"),
        (("import-weights", "i3d"), 2, "FILE"),
        (("import-weights", "i3d", "nowhere.pt"), CheckpointError.exit_code, "nowhere.pt: no such file"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("magi: error:") and told in err
