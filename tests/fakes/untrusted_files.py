"""Weight files that nobody should trust: compiled modules, and traps that leave a folder or file when they are run."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


class PickledCall:
    """Pickles as a call of ``os.mkdir``, which leaves a trace when it is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.trace,)


class PickledCode:
    """Pickles as a call of ``exec``, a builtin."""

    def __init__(self, trace: Path) -> None:
        self.code = f"import os; os.mkdir({str(trace)!r})"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (self.code,)


class _WritesWhenLoaded(nn.Module):
    def __init__(self, trace: str) -> None:
        super().__init__()
        self.trace = trace
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.trace, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        torch.save(state[1], state[0])
        self.trace, self.weight, self.training = state[0], state[1], state[2]


def torchscript_trap(path: Path, trace: Path) -> Path:
    """A TorchScript file whose ``__setstate__`` writes the file ``trace``: loading it is enough."""
    torch.jit.script(_WritesWhenLoaded(str(trace))).save(str(path))
    return path


def pickle_trap(path: Path, trace: Path) -> Path:
    """A torch file that makes the folder ``trace`` when it is unpickled without restrictions."""
    torch.save({"a": torch.ones(1), "b": PickledCall(trace)}, path)
    return path


def read_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the child's own function in this process: its answers are the same, and no process has to start."""

    def ask(path: Path, tensors_file: Path, prefixes: Sequence[str], _: reader.ReadLimits) -> Answer:
        return Answer(**json.loads(json.dumps(dataclasses.asdict(read(path, tensors_file, prefixes)))))

    monkeypatch.setattr(reader, "_ask_child", ask)
