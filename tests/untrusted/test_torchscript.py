"""Claims: a compiled module's tensors are read by name, exactly; its code is never run."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from magi.errors import CheckpointError
from magi.untrusted.torchscript import is_torchscript, read_torchscript
from tests.fakes.untrusted_files import compiled


def test_every_kind_of_tensor_and_module_is_read_by_its_name(tmp_path: Path) -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)
            self.register_buffer("count", torch.tensor(7))
            self.size, self.sizes, self.label, self.scale = 3, [1, 2], "name", 0.5

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.conv(value) * self.scale

    model = nn.Sequential(
        Part(), nn.Identity(), nn.LayerNorm(4).half(), nn.ModuleDict({"a": nn.Linear(2, 2).double()})["a"]
    )
    model.register_parameter("turned", nn.Parameter(torch.randn(3, 5).t()))
    whole = torch.arange(10.0)
    model.register_buffer("first", whole[:4])  # two views of one memory, which the archive holds once
    model.register_buffer("last", whole[4:])
    for number, made in enumerate((torch.jit.script(model), torch.jit.script(model.eval()))):
        made.save(str(tmp_path / f"{number}.jit"))
        tensors, wanted = read_torchscript(tmp_path / f"{number}.jit"), model.state_dict()
        assert is_torchscript(tmp_path / f"{number}.jit") and tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name])


def test_the_code_of_an_archive_is_not_even_looked_at(tmp_path: Path) -> None:
    path = compiled({"part.weight": torch.arange(5.0)}, tmp_path / "good.jit")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "other.jit", "w") as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, "no code" if "/code/" in entry.filename else archive.read(entry))
    with pytest.raises(RuntimeError):
        torch.jit.load(str(tmp_path / "other.jit"))
    assert torch.equal(read_torchscript(tmp_path / "other.jit")["part.weight"], torch.arange(5.0))


def test_damaged_and_foreign_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    good = compiled({"a.weight": torch.ones(300)}, tmp_path / "good.jit").read_bytes()
    torch.save({"a": torch.ones(3)}, tmp_path / "pickle.pt")
    assert not is_torchscript(tmp_path / "pickle.pt")
    with zipfile.ZipFile(tmp_path / "empty.jit", "w") as archive:
        archive.writestr("other/file", "x")
    files = {"cut.jit": good[:-200], "text.jit": b"text", "empty.jit": (tmp_path / "empty.jit").read_bytes()}
    with zipfile.ZipFile(tmp_path / "good.jit") as archive, zipfile.ZipFile(tmp_path / "bomb.jit", "w") as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    files["bomb.jit"] = (tmp_path / "bomb.jit").read_bytes()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="compiled module") as caught:
            read_torchscript(tmp_path / name)
        assert "\n" not in str(caught.value)
