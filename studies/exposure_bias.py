"""Study: dynamic interval and noise on observations each help, both are best (paper's ablation; section 4).

    python -m studies.exposure_bias --source digits

A model sees its own frames when it generates and real ones when it trains. Variants: none, interval, noise, both, for
complete teacher forcing; without and with interval for masked teacher forcing, which has no observation frames to put
noise on. All predict 16 frames from the first frame of held-out clips at interval 1. The runs of ``ctf_vs_mtf`` and
``drift`` are among these.
"""

from pathlib import Path

from studies.commands import run_command
from studies.measures import FVD
from studies.results import compared, write_trained
from studies.variants import OneSeedOptions, load_or_train

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
"""A statement, the variant that it is about, and the variant that it is compared with."""


def study(options: OneSeedOptions) -> Path:
    """Train what is missing, judge and write the result."""
    names = (NONE, INTERVAL, NOISE, BOTH, MASKED, MASKED_INTERVAL)
    found = load_or_train(options, names)
    parts = [compared(found, text, one, other, FVD) for text, one, other in COMPARISONS]
    return write_trained(STUDY, options, found, parts)


if __name__ == "__main__":
    run_command("exposure_bias", OneSeedOptions, study)
