"""A case in a process of its own: ``python -m magi.bench.apart CASE DEVICE ROUNDS SMOKE OUT.json``.

A kernel that faults, or waits for ever, takes its process along and nothing else. The cases are only known in the
child, which looks its own up by name.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from magi.bench.case import Case, Setting

COMMAND = (sys.executable, "-m", "magi.bench.apart")
START_SECONDS, SLACK = 300, 3
"""Time to import everything, and how much longer than its own estimate a case may take."""


def measured_apart(case: Case, setting: Setting) -> dict[str, Any]:
    """The record of ``runner.run_case`` from another process; RuntimeError if that ends without one."""
    limit = START_SECONDS + SLACK * 60 * case.minutes
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        words = [case.name, str(setting.device), str(setting.rounds), str(int(setting.smoke)), str(out)]
        try:
            done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"its process did not end within {limit:.0f} s") from None
        if done.returncode or not out.is_file():
            said = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"its process ended with {done.returncode}: {said[0][:300]}")
        record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return record


def main(name: str, device: str, rounds: str, smoke: str, out: str) -> None:
    """Measure one case here and write its record."""
    from magi.bench.runner import run_case
    from magi.bench.suite import CASES

    (case,) = (case for case in CASES if case.name == name)
    record = run_case(case, Setting(torch.device(device), smoke == "1", int(rounds)))
    Path(out).write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
