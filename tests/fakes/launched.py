"""``torchrun`` with workers that call a function; its arguments, rendezvous, signals and exit code are its own.

Whether a program starts under it as a module is for ``tests/cli`` to see.
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

PATIENCE_S = 600  # on a machine that is busy with other things
FRESH = multiprocessing.get_context("spawn")  # forks of a process that has loaded torch die now and then


def torchrun(work: Callable[..., int], *words: str, log: Path) -> SpawnProcess:
    """Two processes that both call ``work(*words)``, under a launcher that says what they say in ``log``."""
    launcher = FRESH.Process(target=_launcher, args=(work, words, log))
    launcher.start()
    return launcher


def exit_code(launcher: SpawnProcess) -> int | None:
    """What it ends with; None, and it is killed, if it does not end."""
    launcher.join(PATIENCE_S)
    if (code := launcher.exitcode) is None:
        launcher.kill()
    return code


def magi(*words: str) -> int:
    """The command line."""
    from magi.cli.main import main

    return main(list(words))


def _launcher(work: Callable[..., int], words: tuple[str, ...], log: Path) -> None:
    from torch.distributed import run

    with log.open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    plain = run.elastic_launch

    def spawned(config: Any, entrypoint: str) -> Callable[..., None]:
        return lambda *_: plain(replace(config, start_method="spawn"), _worker)(work, words)

    with patch.object(run, "elastic_launch", spawned):
        run.main(["--standalone", "--nproc-per-node=2", "-m", "magi"])


def _worker(work: Callable[..., int], words: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    if code := work(*words):
        os._exit(code)
