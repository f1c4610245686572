"""Claims: an untrusted file runs no code on any path, and whatever it does to its reader ends as one line."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from magi.errors import CheckpointError
from magi.untrusted.child import read
from magi.untrusted.reader import ReadLimits, read_untrusted
from studies.survival.canaries import PickledCall, PickledCode, pickle_trap
from tests.fakes.untrusted_files import compiled, read_in_process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_process(monkeypatch)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "torchscript", "training"])
def test_tensors_come_back_exactly_from_every_format(kind: str, tmp_path: Path) -> None:
    """Views of one memory, too, which a file holds once for both."""
    whole = torch.arange(12.0).reshape(3, 4)
    values = {"part.whole": whole, "part.turned": whole.T, "other.bf16": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "file"
    if kind == "safetensors":
        save_file({name: value.contiguous().clone() for name, value in values.items()}, path)
    elif kind == "torchscript":
        compiled(values, path)
    elif kind == "training":
        torch.save({"state_dict": values, "hyper_parameters": {"width": 4, "paths": [1]}}, path)
    else:
        torch.save(values, path, _use_new_zipfile_serialization=kind == "zip")
    found = read_untrusted(path)
    assert set(found.tensors) == set(values) and not found.left_out
    assert all(torch.equal(found.tensors[name], values[name]) for name in values)
    assert found.hyper_parameters == ({"width": 4} if kind == "training" else {})


def test_only_wanted_tensors_are_handed_back(tmp_path: Path, in_process: None) -> None:
    torch.save({name: torch.ones(1) for name in ("encoder.a", "encoder.b", "loss.a", "loss.b")}, tmp_path / "file")
    found = read_untrusted(tmp_path / "file", prefixes=("encoder.",))
    assert set(found.tensors) == {"encoder.a", "encoder.b"} and found.left_out == {"loss": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello, world", "damaged"), (b"PK\3\4 cut short", "not a torch checkpoint, or truncated"), (b"", "damaged")],
)
def test_other_files_are_refused(content: bytes, words: str, tmp_path: Path, in_process: None) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"file: .*{words}"):
        read_untrusted(tmp_path / "file")
    with pytest.raises(CheckpointError, match="no such file"):
        read_untrusted(tmp_path / "none")


@pytest.mark.parametrize("bad", [[], {}, {"a": {"b": torch.ones(1)}}, {"a": 3}, {4: torch.ones(1)}, torch.ones(2)])
def test_only_a_flat_dictionary_of_tensors_is_taken(bad: object, tmp_path: Path, in_process: None) -> None:
    torch.save(bad, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"no dictionary of tensors|not plain text"):
        read_untrusted(tmp_path / "file.pth")


@pytest.mark.parametrize(("kind", "name"), [(PickledCall, "posix.mkdir"), (PickledCode, "exec")])
@pytest.mark.parametrize("key", ["hyper_parameters", "callbacks", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_is_refused_and_not_run(
    tmp_path: Path, kind: Any, name: str, key: str, zipped: bool
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "released.ckpt"
    values = {"state_dict": {"a": torch.ones(1)}, key: {"args": kind(trace)}}
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    answer = read(path, tmp_path / "tensors")
    assert name in answer.refused and "\n" not in answer.refused and not trace.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert trace.exists()


def test_what_a_training_framework_left_in_the_file_is_neither_imported_nor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks")
    (tmp_path / "ran").mkdir()
    ran = tmp_path / "ran" / "trace"
    trap: Any = type("Trap", (), {"__module__": module.__name__, "__setstate__": lambda *_: ran.mkdir()})
    trap.__qualname__ = "Trap"
    module.Trap = trap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    value = trap()
    value.best = 1.0
    path = tmp_path / "released.ckpt"
    values = {"state_dict": {"a": torch.ones(1)}, "callbacks": {trap: value}, "hyper_parameters": {"width": 3}}
    torch.save(values, path)
    answer = read(path, tmp_path / "tensors")
    assert not answer.refused and not ran.exists() and answer.hyper_parameters == {"width": 3}


def test_the_child_is_stopped_by_time_and_by_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"not read after 0\.05 seconds"):
        read_untrusted(tmp_path / "file.pth", limits=ReadLimits(seconds=0.05))
    with pytest.raises(CheckpointError, match=r"died \(exit code .*\), within a memory limit of 0\.268 GB"):
        read_untrusted(tmp_path / "file.pth", limits=ReadLimits(memory_bytes=256 << 20))


def test_a_child_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.pth").write_bytes(b"\x80" + b"x" * 20)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match=r"died \(exit code 1\)"):
        read_untrusted(tmp_path / "file.pth")


def test_the_child_reads_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds the package from any working directory, which is not searched for modules."""
    pickle_trap(tmp_path / "bad.pth", tmp_path / "made")
    (tmp_path / "torch.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"^bad\.pth: it asks for posix\.mkdir, which no") as error:
        read_untrusted(Path("bad.pth"))
    assert not (tmp_path / "made").exists() and "\n" not in str(error.value)
