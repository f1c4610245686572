"""``python -m studies.survival NAME``: conduct the trials of one promise and write results/survival/NAME.json."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from magi.cli.main import exit_code_of
from magi.cli.options import parse
from magi.errors import hint
from studies.survival import canaries, damage, hostile, kills, limits, memory, overwritten, sameness
from studies.survival.commands import World
from studies.survival.report import GOALS, conduct, write

TRIALS = {
    "kills": kills.trials,
    "damaged": damage.trials,
    "canaries": canaries.trials,
    "reproducibility": sameness.trials,
    "limits": limits.trials,
    "hostile": hostile.trials,
    "overwritten": overwritten.trials,
    "memory": memory.trials,
}


@dataclass(frozen=True)
class Options:
    """How many trials, and where their count is written."""

    count: int = 0
    """trials (of memory: steps); 0 are as many as the promise is published with"""
    seed: int = 0
    """of what is drawn: where a file is cut, when a command is killed"""
    results: Path = Path("results/survival")
    """folder to write NAME.json to"""


def work() -> None:
    name, *rest = sys.argv[1:] or [""]
    if name not in TRIALS:
        raise ValueError(f"python -m studies.survival: no promise '{name}'; {hint(name, TRIALS)}")
    options = parse(Options, f"survival {name}", rest)
    with tempfile.TemporaryDirectory() as folder:
        trials = TRIALS[name](World(Path(folder)), options.count or GOALS[name][0], options.seed)
        write(conduct(name, trials, options.seed), options.results)


if __name__ == "__main__":
    sys.exit(exit_code_of(work))
