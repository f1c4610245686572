"""Files that leave a trace when they are run, in the place of every file that a command loads: none may."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from magi.evaluation.networks.published_files import WEIGHT_KINDS
from studies.survival.commands import World, magi, newest, train
from studies.survival.report import Trial


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
        self.trace, self.weight, self.training = state[0], state[1], state[2]  # type: ignore[assignment]


def torchscript_trap(path: Path, trace: Path) -> Path:
    """A TorchScript file whose ``__setstate__`` writes the file ``trace``: loading it is enough."""
    torch.jit.script(_WritesWhenLoaded(str(trace))).save(str(path))
    return path


def pickle_trap(path: Path, trace: Path) -> Path:
    """A torch file that makes the folder ``trace`` when it is unpickled without restrictions."""
    torch.save({"a": torch.ones(1), "b": PickledCall(trace)}, path)
    return path


def legacy_trap(path: Path, trace: Path) -> Path:
    torch.save({"a": PickledCall(trace)}, path, _use_new_zipfile_serialization=False)
    return path


def yaml_trap(path: Path, trace: Path) -> Path:
    path.write_text(f"!!python/object/apply:os.mkdir ['{trace}']\n")
    return path


def npy_trap(path: Path, trace: Path) -> Path:
    with path.open("wb") as file:
        np.save(file, np.array([PickledCall(trace)], dtype=object), allow_pickle=True)
    return path


TRAPS = {"npy": npy_trap, "zip": pickle_trap, "legacy": legacy_trap, "torchscript": torchscript_trap, "yaml": yaml_trap}
"""What a canary is written as -> what writes it to a path, with the trace that it leaves."""


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials, of every kind of canary at every path in turn."""
    export = ("model.safetensors", "config.yaml", "classes.json")
    run = [f"checkpoints/{newest(world.run).name}/{name}" for name in ("ema.safetensors", "state.json")]
    paths = [
        *(_imported(world, ["evaluate", "import-weights", kind], ["--allow-unknown"]) for kind in WEIGHT_KINDS),
        _imported(world, ["vae", "import"], ["out"]),
        _imported(world, ["train"], ["--run", "out"]),
        *(_replaced(world, world.export, name, _sample) for name in export),
        *(_replaced(world, world.run, name, _sample) for name in run),
        *(
            _replaced(world, world.latents, name, lambda folder: train(folder.parent / "out", folder))
            for name in ("magi-latents.json", "shard-00000.safetensors")
        ),
        _replaced(world, world.videos, "magi-index.safetensors", lambda folder: magi("data", "index", folder)),
    ]
    kinds = [
        Trial(trap, lambda path=path, trap=trap: path(trap))  # type: ignore[misc]
        for path in paths
        for trap in TRAPS
    ]
    random.Random(seed).shuffle(kinds)
    return islice(cycle(kinds), count)


def _sample(folder: Path) -> object:
    return magi("sample", folder, folder.parent / "out", "--frames", "2", "--device", "cpu")


def _imported(world: World, before: list[str], after: list[str]) -> Callable[[str], str]:
    """A command that is given the canary itself."""

    def path(trap: str) -> str:
        with world.copy(world.export) as folder:
            trace, cache = folder.parent / "trace", folder.parent / "cache"
            file = TRAPS[trap](folder.parent / "file.yaml", trace)
            rest = [str(folder.parent / "out") if word == "out" else word for word in after]
            magi(*before, file, *rest, environment={"MAGI_CACHE": str(cache)})
            return f"{' '.join(before)} ran it" if trace.exists() else ""

    return path


def _replaced(world: World, of: Path, name: str, use: Callable[[Path], object]) -> Callable[[str], str]:
    """A folder of which one file is the canary."""

    def path(trap: str) -> str:
        with world.copy(of) as folder:
            trace = folder.parent / "trace"
            shutil.copyfile(TRAPS[trap](folder.parent / "file", trace), folder / name)
            use(folder)
            return f"{of.name}/{name} was run" if trace.exists() else ""

    return path
