"""Claims: a stranger's file runs no code, and whatever it does to the reader ends as one line."""

import io
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi.errors import CheckpointError
from magi.untrusted import foreign_file
from magi.untrusted.foreign_file import _flat_tensors, file_format, read_foreign


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_formats_are_told_apart_without_reading_them(tmp_path: Path) -> None:
    values = {"a": torch.ones(2)}
    save_file(values, tmp_path / "a.safetensors")
    torch.save(values, tmp_path / "zip.pth")
    torch.save(values, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(Scripted()).save(str(tmp_path / "program.pt"))
    found = {path.name: file_format(path) for path in tmp_path.iterdir()}
    assert found == {
        "a.safetensors": "safetensors",
        "zip.pth": "state-dict",
        "legacy.pth": "state-dict",
        "program.pt": "torchscript",
    }


@pytest.mark.parametrize(("content", "words"), [(b"hello, world", "neither"), (b"PK\3\4 cut short", "damaged archive")])
def test_other_files_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_foreign(tmp_path / "file")


def test_tensors_come_back_exactly(tmp_path: Path) -> None:
    """From the older of torch's formats, too, and views of one memory, which a file holds once for both."""
    whole = torch.arange(12.0).reshape(3, 4)
    values = {"whole": whole, "turned": whole.T, "count": torch.tensor(3)}
    torch.save(values, tmp_path / "file.pth", _use_new_zipfile_serialization=False)
    found = read_foreign(tmp_path / "file.pth")
    assert set(found) == set(values) and all(torch.equal(found[name], values[name]) for name in values)


@pytest.mark.slow
def test_a_program_is_asked_for_its_state(tmp_path: Path) -> None:
    module = Scripted()
    torch.jit.script(module).save(str(tmp_path / "program.pt"))
    found = read_foreign(tmp_path / "program.pt")
    assert set(found) == {"layer.weight", "layer.bias"} and torch.equal(found["layer.bias"], module.layer.bias)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Attack(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="cannot be read safely: UnpicklingError") as error:
        read_foreign(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)
    with io.BytesIO((tmp_path / "bad.pth").read_bytes()) as file:  # it would have run: the attack is a real one
        torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_reader_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.pth").write_bytes(b"\x80" + b"x" * 20)
    monkeypatch.setattr(foreign_file.sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match="ended with code 1"):
        read_foreign(tmp_path / "file.pth")


def test_a_reader_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.pth").write_bytes(b"\x80" + b"x" * 20)
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(foreign_file.sys, "executable", str(hanging))
    monkeypatch.setattr(foreign_file, "_SECONDS", 0.2)
    with pytest.raises(CheckpointError, match="not read after 0 seconds"):
        read_foreign(tmp_path / "file.pth")


@pytest.mark.parametrize("bad", [[], {}, {"a": {"b": torch.ones(1)}}, {"a": 3}, {4: torch.ones(1)}, torch.ones(2)])
def test_only_a_flat_dictionary_of_tensors_is_taken(bad: object) -> None:
    with pytest.raises(ValueError, match="expected a"):
        _flat_tensors(bad)
