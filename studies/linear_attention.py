"""Study: gated linear attention along time against softmax at equal training (the paper leaves it for later).

    python -m studies.linear_attention --source digits

Same model otherwise, same data, steps and seeds; both predict 16 frames from the first frame of held-out clips, the
length that they were trained on. "About equal" is taken as within 15%, and being better by more does not contradict
it. Reported beside it and not judged: 104 frames, from a state that is begun anew with the newest frames (window), and
from one that goes on since the first frame.
"""

from dataclasses import replace
from pathlib import Path

from studies.commands import run_command
from studies.ctf_vs_mtf import ABOUT_EQUAL
from studies.length import Predicted, judged
from studies.measures import FID, FVD
from studies.results import compared, write_trained
from studies.statistics import Judged
from studies.variants import LINEAR, OneSeedOptions, VariantMeasures, load_or_train

STUDY = "linear_attention"
SOFTMAX = "ctf"


def long_videos(found: VariantMeasures) -> list[Judged]:
    """What the study of length asks of long videos, of both ways of going on."""
    parts = judged(Predicted(found.by_name[LINEAR], found.real))
    texts = [part.statement.text.replace("interpolate:", "state:") for part in parts]
    return [
        replace(part, statement=replace(part.statement, text=f"long, {text}"))
        for part, text in zip(parts, texts, strict=True)
    ]


def study(options: OneSeedOptions) -> Path:
    """Train what is missing, judge and write the result."""
    found = load_or_train(options, (LINEAR, SOFTMAX))
    equal = (-ABOUT_EQUAL, ABOUT_EQUAL)
    parts = [
        compared(found, f"{distance} about equal or better", LINEAR, SOFTMAX, distance, *equal)
        for distance in (FVD, FID)
    ]
    return write_trained(STUDY, options, found, parts, long_videos(found))


if __name__ == "__main__":
    run_command("linear_attention", OneSeedOptions, study)
