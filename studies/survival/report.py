"""Counts the trials of a promise that were kept, and writes them as JSON."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import magi
from magi.files import write_json

GOALS = {
    "kills": (
        300,
        "resume by the same command, lose nothing, leave nothing behind, end with the same bytes and losses",
    ),
    "canaries": (20, "run no code, whatever stands in the place of a file that is loaded"),
    "reproducibility": (8, "write the same bytes"),
    "limits": (63, "end well or in one line, change nothing it reads, and work once there is enough"),
    "hostile": (1000, "be read or refused in a sandbox that lives, within 30 s; touch no other file and no host"),
    "overwritten": (360, "be noticed, where bytes in the middle of a video were overwritten by random ones"),
    "memory": (15_000, "stay within 2 % after warming up (10,000 steps of training and 5,000 frames of a stream)"),
    "damaged": (200, "noticed and named, or harmless; a run goes on from the newest good checkpoint, equal to the bit"),
}
"""Promise -> how many trials it is published with, and what each must show."""


@dataclass(frozen=True)
class Trial:
    """One try: what kind it is of, and a function that says what went wrong, or nothing."""

    kind: str
    run: Callable[[], str]
    units: int = 1
    """as how many it counts, such as steps"""


def conduct(name: str, trials: Iterable[Trial], seed: int = 0) -> dict[str, Any]:
    """Run all ``trials`` of the promise ``name``, one after the other; returns what ``write`` writes."""
    begun, kinds, failed = time.monotonic(), Counter[str](), list[str]()
    for trial in trials:
        kinds[trial.kind] += trial.units
        if wrong := trial.run():
            failed.append(f"{trial.kind}: {wrong}")
            print(failed[-1], flush=True)
    wanted, goal = GOALS[name]
    return {
        "promise": name,
        "goal": goal,
        "wanted": wanted,
        "n": kinds.total(),
        "failures": len(failed),
        "failed": failed,
        "kinds": dict(sorted(kinds.items())),
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        "version": magi.__version__,
    }


def write(report: dict[str, Any], results: Path) -> Path:
    """Write NAME.json into ``results`` and print the counts."""
    path = results / f"{report['promise']}.json"
    write_json(path, report)
    print(f"{report['promise']}: {report['failures']} of {report['n']} failed, in {report['seconds']} s\n{path}")
    return path
