"""Study: dynamic interval and noise on observations each help, both are best (paper's ablation; section 4).

    python -m studies.exposure_bias --source digits

A model sees its own frames when it generates and real ones when it trains. Arms: none, interval, noise, both, for
complete teacher forcing; without and with interval for masked teacher forcing, which has no observation frames to put
noise on. All predict 16 frames from the first frame of held-out clips at interval 1. The arms of ``ctf_vs_mtf`` and
``drift`` are among these.
"""

from dataclasses import dataclass
from pathlib import Path

from studies.commands import command, options_of
from studies.measures import FVD
from studies.prediction import compared, write_prediction
from studies.running import StudyOptions, gathered

STUDY = "exposure_bias"
NONE, INTERVAL, NOISE, BOTH = "ctf-without-both", "ctf-without-noise", "ctf-without-interval", "ctf"
MASKED, MASKED_INTERVAL = "mtf-without-interval", "mtf"
COMPARISONS = (
    ("interval alone helps", INTERVAL, NONE),
    ("noise alone helps", NOISE, NONE),
    ("both are better than interval alone", BOTH, INTERVAL),
    ("both are better than noise alone", BOTH, NOISE),
    ("interval helps MTF", MASKED_INTERVAL, MASKED),
)
"""What is said, the arm it is said of, and the arm it is held against."""


@dataclass(frozen=True)
class ExposureBiasOptions(StudyOptions):
    """Train with and without dynamic interval and noise, and compare."""

    seeds: int = 1
    """trainings of every arm"""


def study(options: StudyOptions) -> Path | None:
    """Train what is missing, judge and write the result; None after a dry run."""
    names = (NONE, INTERVAL, NOISE, BOTH, MASKED, MASKED_INTERVAL)
    arms = gathered(options, names)
    if arms is None:
        return None
    parts = [compared(arms, text, one, other, FVD) for text, one, other in COMPARISONS]
    return write_prediction(options, STUDY, arms, parts)


def main() -> None:
    """The study that the command line asks for."""
    study(options_of(ExposureBiasOptions, f"studies.{STUDY}"))


if __name__ == "__main__":
    command(main)
