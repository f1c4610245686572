"""Study: 100 and more frames from training on 16 (paper section 5), by interpolated positions and by a sliding window.

    python -m studies.length --model demo           (the shipped model; no training)
    python -m studies.length --source digits        (runs of 'ctf')

Held-out clips are continued from 4 frames to 104. Far from the context a video is coherent where it still changes as
much from frame to frame as a real one, is as sharp, and (digits) still shows its class. The exact path is reported and
not judged: a bounce that comes a frame late is a path that is off for good, however good the video.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from magi.evaluation.metrics.bootstrap import mean_curve
from magi.evaluation.plots import COLOURS, REAL_COLOUR, draw_curve, figure_of
from magi.sampling.pipeline import MagiPipeline
from magi.vae.adapters import load_vae
from studies.commands import run_command
from studies.measures import (
    LONG_CLIPS,
    LONG_CONTEXT,
    LONG_FRAMES,
    Measures,
    frame_curves,
    load_or_compute,
    long_curves,
    model_id,
    predicted,
    through,
)
from studies.results import training_settings, write_outcome
from studies.sources import Source, held_out_clips
from studies.statistics import Judged, Statement, all_of, effect_of, judge
from studies.variants import ModelOptions, check_options, load_or_train, open_model

MODES: dict[str, Literal["window", "interpolate"]] = {"": "window", "interpolated_": "interpolate"}
"""Prefix of a measure -> how the videos were made longer."""
REAL = {"real": "", "through autoencoder": "vae_"}
SERIES = {"real": REAL_COLOUR, "through autoencoder": "#999999", "window": COLOURS[0], "interpolate": COLOURS[1]}
TRAINED_FRAMES = 16
LAST_FRAMES = 16
RATIOS = {"adjacent_l2": (0.5, 2.0), "sharpness": (0.7, 1.3)}
LEAST_CLASS_ACCURACY = 0.6
PANELS = {
    "adjacent_l2": "change from the frame before",
    "sharpness": "sharpness",
    "class_accuracy": "class accuracy (share of clips)",
    "position_error_px": "distance from exact path (px)",
}


@dataclass(frozen=True)
class LengthOptions(ModelOptions):
    """Continue held-out clips far beyond the trained length."""

    count: int = 32
    """clips that a finished model continues"""
    frames: int = LONG_FRAMES
    """length of a finished model's videos; runs are measured at the default"""


@dataclass(frozen=True)
class Predicted:
    """Measures of generated videos, a set a seed, and of the real clips they continue, all of ``frames`` frames."""

    generated: list[Measures]
    real: Measures
    frames: int = LONG_FRAMES


def of_model(options: LengthOptions) -> tuple[Predicted, dict[str, Any]]:
    """A finished model's predictions, and the settings that the result records."""
    if not 2 <= options.count <= LONG_CLIPS:
        raise ValueError(f"--count {options.count}: expected 2 to {LONG_CLIPS}")
    clips = f"{len(MODES)} x {options.count} clips of {options.frames} frames"
    pipe, place, settings = open_model(options, clips)
    modes = {prefix: _measured(options, pipe, place, mode) for prefix, mode in MODES.items()}
    tensors = {prefix + name: values for prefix, one in modes.items() for name, values in one.items()}
    clips_BTHWC = held_out_clips(place, options.frames, count=options.count)
    reconstructed = frame_curves(through(load_vae(place.vae_config), clips_BTHWC))
    real = frame_curves(clips_BTHWC) | {f"vae_{name}": values for name, values in reconstructed.items()}
    return Predicted([tensors], real, options.frames), settings | {"clips": options.count}


def _measured(
    options: LengthOptions, pipe: MagiPipeline, place: Source, mode: Literal["window", "interpolate"]
) -> Measures:
    name = f"length-{Path(options.model).name}-{mode}-{options.count}-{options.frames}.safetensors"
    settings = f"{model_id(pipe)} {LONG_CONTEXT} to {options.frames} frames"

    def compute() -> dict[str, Tensor]:
        context_BTHWC = held_out_clips(place, LONG_CONTEXT, count=options.count)
        return long_curves(place, predicted(pipe, context_BTHWC, options.frames, longer=mode))

    return load_or_compute(options.out / "models" / name, settings, compute)


def of_runs(options: LengthOptions) -> tuple[Predicted, dict[str, Any]]:
    """Predictions of the runs 'ctf', and the settings that the result records."""
    found = load_or_train(options, ["ctf"])
    return Predicted(found.by_name["ctf"], found.real), training_settings(options, ["ctf"])


def judged(found: Predicted) -> list[Judged]:
    """Both ways of growing longer: change and sharpness of the last frames against real ones, and the class."""
    parts = []

    def add(statement: Statement, name: str, statistic: Callable[..., float]) -> None:
        clips = len(found.generated[0][name])
        parts.append(judge(statement, effect_of([partial(statistic, one[name]) for one in found.generated], clips)))

    for prefix, mode in MODES.items():
        for name, bounds in RATIOS.items():
            text = f"{mode}: {name} of the last {LAST_FRAMES} frames near real"
            add(Statement(text, f"ratio of {name}", *bounds), prefix + name, partial(_ratio, found.real[name]))
        if prefix + "class_accuracy" in found.generated[0]:
            text = f"{mode}: class accuracy after frame {TRAINED_FRAMES}"
            statement = Statement(text, "share of frames", LEAST_CLASS_ACCURACY, None)
            add(statement, prefix + "class_accuracy", lambda shown_BT, N: float(shown_BT[N, TRAINED_FRAMES:].mean()))
    return parts


def _ratio(real_BT: Tensor, generated_BT: Tensor, picked_N: Tensor) -> float:
    return float(generated_BT[picked_N, -LAST_FRAMES:].mean() / real_BT[picked_N, -LAST_FRAMES:].mean())


def draw(found: Predicted) -> Figure:
    """Each measure against the frame number, mean over clips and seeds, with its interval over clips."""
    shown = [name for name in PANELS if name in found.generated[0]]
    figure = figure_of(6.5 * min(2, len(shown)), 3.6 * -(-len(shown) // 2))
    for axes, name in zip(figure.subplots(-(-len(shown) // 2), min(2, len(shown))).flat, shown, strict=False):
        curves = {label: found.real[prefix + name] for label, prefix in REAL.items() if name in found.real}
        for prefix, mode in MODES.items():
            curves[mode] = torch.cat([one[prefix + name] for one in found.generated])
        for label, values_BT in curves.items():
            first = found.frames - values_BT.shape[1] + 1
            draw_curve(axes, mean_curve(values_BT, 0), SERIES[label], "-", label, first)
        axes.axvline(TRAINED_FRAMES + 0.5, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(PANELS[name], fontsize=11)
        axes.set_xlabel("frame number (dotted: trained length)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return figure


def numbers_of(found: Predicted) -> dict[str, Any]:
    """Means of every measure in stretches of frames, a list over seeds; and of the real clips."""
    middle = (TRAINED_FRAMES + found.frames) // 2
    ends = (LONG_CONTEXT, TRAINED_FRAMES, middle, found.frames)
    stretches = {f"{first + 1}-{last}": slice(first, last) for first, last in pairwise(ends)}

    def means(values_BT: Tensor) -> dict[str, float]:
        first = found.frames - values_BT.shape[1]  # changes begin at the second frame
        return {
            name: float(values_BT[:, part.start - first : part.stop - first].mean()) for name, part in stretches.items()
        }

    generated = {
        name: [means(one[name]) for one in found.generated]
        for name in found.generated[0]
        if "grey_edges" not in name and "digits3d" not in name
    }
    curves = [prefix + name for prefix in REAL.values() for name in ("adjacent_l2", "brightness", "sharpness")]
    real = {name: means(found.real[name]) for name in curves}
    return {"generated": generated, "real": real}


def study(options: LengthOptions) -> Path:
    """Generate, judge and write the result."""
    check_options(options)
    least = TRAINED_FRAMES + LAST_FRAMES
    if options.frames < least or (options.frames != LONG_FRAMES and not options.model):
        raise ValueError(f"--frames {options.frames}: expected at least {least}, and {LONG_FRAMES} without --model")
    found, settings = of_model(options) if options.model else of_runs(options)
    parts, notes = judged(found), ["one seed: intervals are over clips"] if len(found.generated) == 1 else []
    if not options.model and options.budget.is_short:
        notes.append(f"short training: {options.budget.steps * options.budget.batch} clips a run")
    verdicts = {
        mode: all_of(part.verdict for part in parts if part.statement.text.startswith(mode)) for mode in MODES.values()
    }
    numbers = numbers_of(found) | {"verdicts": verdicts}
    settings |= {"context": LONG_CONTEXT, "frames": found.frames}
    scale = options.result_scale + (f"-{options.frames}" if options.model else "")
    return write_outcome("length", options, draw(found), parts, numbers, settings, notes, scale)


if __name__ == "__main__":
    run_command("length", LengthOptions, study)
