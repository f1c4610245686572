"""Weight files that nobody should trust: compiled modules, and reading without the child."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from magi.untrusted import reader
from magi.untrusted.child import Answer, read


class Holder(nn.Module):
    """Tensors under given names, in nested modules, as a release has them."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value


def compiled(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A TorchScript file with tensors of these names."""
    top = Holder()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        module: nn.Module = top
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Holder())
            module = module.get_submodule(parent)
        module.register_buffer(last, tensor.clone())
    torch.jit.script(top).save(str(path))
    return path


def read_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the child's own function in this process: its answers are the same, and no process has to start."""

    def ask(path: Path, tensors_file: Path, prefixes: Sequence[str], _: reader.ReadLimits) -> Answer:
        return Answer(**json.loads(json.dumps(dataclasses.asdict(read(path, tensors_file, prefixes)))))

    monkeypatch.setattr(reader, "_ask_child", ask)
