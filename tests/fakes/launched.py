"""``torchrun`` of two processes that share a training, on one thread each."""

import os
import subprocess
import sys
from pathlib import Path

PATIENCE_S = 600  # on a machine that is busy with other things
_ROOT = Path(__file__).parents[2]


def torchrun(module: str, *words: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start two processes of ``module`` under a launcher that says what they say in ``log``."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
    with log.open("a") as said:
        return subprocess.Popen(
            [sys.executable, *launcher, *words],
            stdout=said,
            stderr=said,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=_ROOT,
        )


def exit_code(launcher: "subprocess.Popen[bytes]") -> int | None:
    """What it ends with; None, and it is killed, if it does not end."""
    try:
        return launcher.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        return None
