"""Study: with dynamic interval the change between adjacent frames stays near that of real video (paper's Figure 8).

    python -m studies.drift --source digits

Held-out clips are continued from 4 frames to 104 in a sliding window, by models trained with intervals 1 to 4 and at
interval 1 alone. Judged is the change from frame to frame over the last 26 frames against that of real clips at
interval 1: near is within a quarter, and the distance from real (in logarithms, so that freezing and flickering count
alike) is to be smaller with dynamic interval than without.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from magi.evaluation.metrics.bootstrap import Curve, mean_curve
from magi.evaluation.plots import COLOURS, INTERVAL_STYLES, REAL_COLOUR, draw_curve, figure_of
from studies.commands import run_command
from studies.measures import LONG_FRAMES
from studies.results import write_trained
from studies.statistics import Judged, Statement, effect_of, judge
from studies.variants import StudyOptions, VariantMeasures, load_or_train

STUDY = "drift"
WITH, WITHOUT = "ctf", "ctf-without-interval"
LAST_FRAMES = 26
NEAR = 1.25
REAL_STYLES = {"real": (REAL_COLOUR, "-"), "real, through autoencoder": ("#999999", ":")}
REAL_STYLES |= {f"real, interval {interval}": (REAL_COLOUR, style) for interval, style in INTERVAL_STYLES.items()}
"""Colour and line of the curves of real clips."""


def log_ratio(generated_BT: Tensor, real_BT: Tensor) -> float:
    """Logarithm of the mean change of the last frames over that of real clips; a frozen video is at a thousandth."""
    generated, real = (float(values_BT[:, -LAST_FRAMES:].double().mean()) for values_BT in (generated_BT, real_BT))
    return math.log(max(generated / real, 1e-3))


def judged(found: VariantMeasures) -> list[Judged]:
    """Near the real curve with dynamic interval, and nearer than without."""
    real_BT, clips = found.real["adjacent_l2"], len(found.real["adjacent_l2"])

    def near(values_BT: Tensor) -> Callable[[Tensor], float]:
        return lambda picked_N: log_ratio(values_BT[picked_N], real_BT[picked_N])

    def nearer(with_BT: Tensor, without_BT: Tensor) -> Callable[[Tensor], float]:
        one, other = near(with_BT), near(without_BT)
        return lambda picked_N: abs(one(picked_N)) - abs(other(picked_N))

    with_, without = ([one["adjacent_l2"] for one in found.by_name[name]] for name in (WITH, WITHOUT))
    quantity = f"log of the change between frames over real, last {LAST_FRAMES} of {LONG_FRAMES} frames"
    first = Statement("with dynamic interval near the real curve", quantity, -math.log(NEAR), math.log(NEAR))
    second = Statement("nearer than without", f"difference of the absolute {quantity}", None, 0.0)
    pairs = zip(with_, without, strict=True)
    return [
        judge(first, effect_of([near(values_BT) for values_BT in with_], clips)),
        judge(second, effect_of([nearer(one, other) for one, other in pairs], clips)),
    ]


def numbers_of(found: VariantMeasures) -> dict[str, Any]:
    """Curves with bands, and the log ratio of every seed."""
    curves = {name: torch.cat([one["adjacent_l2"] for one in seeds]) for name, seeds in found.by_name.items()}
    curves |= {"real": found.real["adjacent_l2"], "real, through autoencoder": found.real["vae_adjacent_l2"]}
    curves |= {f"real, interval {interval}": found.real[f"adjacent_l2_{interval}"] for interval in (2, 4, 8)}
    ratios = {
        name: [log_ratio(one["adjacent_l2"], found.real["adjacent_l2"]) for one in seeds]
        for name, seeds in found.by_name.items()
    }
    return {
        "log_ratio": ratios,
        "curves": {name: asdict(mean_curve(values_BT, 0)) for name, values_BT in curves.items()},
    }


def draw(numbers: Mapping[str, Any], real: Mapping[str, Any]) -> Figure:
    """Every curve over the frame number; real ones are grey, told apart by their lines."""
    figure = figure_of(8, 4.5)
    axes = figure.subplots()
    colours = iter(COLOURS)
    for name, values in numbers["curves"].items():
        style = REAL_STYLES[name] if name in REAL_STYLES else (next(colours), "-")
        draw_curve(axes, Curve(**values), *style, name, 2)
    axes.set_xlabel("frame number")
    axes.set_title("change from the frame before (root mean square)", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def study(options: StudyOptions) -> Path:
    """Train what is missing, judge and write the result."""
    found = load_or_train(options, (WITH, WITHOUT))
    return write_trained(STUDY, options, found, judged(found), (), numbers_of(found), draw)


if __name__ == "__main__":
    run_command("drift", StudyOptions, study)
