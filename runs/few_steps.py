"""Quality of the shipped model of digits against denoising steps and passes, and the cost: results/few_steps.json.

    python runs/few_steps.py WORK [--one-step RUN] [--count N]

Every row is a copy of the model in WORK with other sampling settings, placed by ``magi tune-steps`` and scored by
``magi evaluate digits``; with --one-step also those of a run that ``magi distill demo RUN --data.root DIR`` has made.
First frames from nothing are made in several iterations, docs/first_frames.png. Then frames are timed one by one, a
video alone, the copies in turns, decoding included, unless other work keeps the machine busy. The same command again
keeps what is there and takes the times anew. ``runs/tables.py few_steps`` writes the tables of docs/performance.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from magi import MagiPipeline
from magi.bench.machine import machine_facts
from magi.cli.main import main as magi
from magi.config import SamplingConfig
from magi.evaluation.moving_digits.intensity import foreground_intensity
from magi.evaluation.moving_digits.protocol import read_real_clips
from magi.evaluation.protocol.result import read_result
from magi.evaluation.protocol.samples import describe
from magi.files import write_json
from magi.presets import at_speed

ROOT = Path(__file__).parents[1]
OUT, PICTURE = ROOT / "results/few_steps.json", ROOT / "docs/first_frames.png"
HELD_OUT_SEED, TUNE_SEED = 1, 2
"""Of the videos, as in runs/digits.sh."""
CONTEXT, TIMED_FRAMES, ROUNDS = 4, 44, 3
"""Frames given, frames timed after them (the window slides several times), and how often."""
BUSY = 1.5
"""Load of a core above which a time would be that of other work."""

ITERATIONS, FIRST_FRAMES, SHOWN = (1, 2, 4, 8), 64, 14
"""Of first frames from nothing, how many, and how many of them are in the picture."""
LIT = 48
"""Grey level above which a pixel is part of a digit."""


def settings_of(own: SamplingConfig) -> dict[str, SamplingConfig]:
    """The rows of the shipped model by name, each as its config is to be before its steps are placed."""
    fast = at_speed(own, "fast")
    whole = own.changed(steps=fast.steps, first_timestep=0, last_timestep=0)
    return {
        "full": own,
        f"whole-schedule-{fast.steps}": whole,
        **{f"placed-{steps}": whole.changed(steps=steps) for steps in (1, 2)},
        "fast": fast,
        "fast-1-iteration": fast.changed(iterations=1),
        "fast-4-iterations": fast.changed(iterations=4),
    }


def run(*words: object) -> None:
    """A command of magi; the end of this one where it fails."""
    if code := magi([str(word) for word in words]):
        raise SystemExit(code)


def copies(work: Path, one_step: Path | None) -> dict[str, Path]:
    """Folders of models by the name of their row; those that are missing are made."""
    folders: dict[str, Path] = {}

    def copy(name: str, model: MagiPipeline, sampling: SamplingConfig, place: bool = False) -> None:
        folder = folders[name] = work / "models" / describe(model).id / name
        if not folder.exists():
            made = folder.with_suffix(".part")
            model.config = model.config.model_copy(update={"sampling": sampling})
            model.save_pretrained(made)
            if place:
                run("tune-steps", made, "--data", work / "tune", "--steps", sampling.steps)
            made.rename(folder)

    demo = MagiPipeline.from_pretrained("demo")
    for name, sampling in settings_of(demo.config.sampling).items():
        copy(name, demo, sampling, place=name.startswith("placed"))
    if one_step is not None:
        student = MagiPipeline.from_pretrained(one_step)
        own = student.config.sampling
        for name, sampling in {"one-step": own, "one-step-1-iteration": own.changed(iterations=1)}.items():
            copy(name, student, sampling)
    return folders


def in_one_piece(frames_BHWC: np.ndarray) -> float:
    """Share of frames whose lit pixels hang together, as those of every digit do."""
    lit_BHW = torch.from_numpy(foreground_intensity(frames_BHWC) > LIT).float()
    labels_BHW = lit_BHW * (torch.arange(lit_BHW[0].numel()) + 1.0).view_as(lit_BHW[0])
    while True:  # the highest number goes through the whole of a piece
        grown_BHW = torch.nn.functional.max_pool2d(labels_BHW, 3, stride=1, padding=1) * lit_BHW
        if torch.equal(grown_BHW, labels_BHW):
            return float(np.mean([len(labels_HW[labels_HW > 0].unique()) == 1 for labels_HW in labels_BHW]))
        labels_BHW = grown_BHW


def first_frames(demo: MagiPipeline) -> dict[str, float]:
    """Share of first frames from nothing that are in one piece, by iterations; a row of the picture each."""
    shares, rows = dict[str, float](), list[np.ndarray]()
    for iterations in ITERATIONS:
        sampling = {"iterations": iterations, "temperature": 1.0}
        frames_BHWC = demo(frames=1, seeds=range(FIRST_FRAMES), sampling=sampling).video_BTHWC[:, 0].numpy()
        shares[str(iterations)] = in_one_piece(frames_BHWC)
        rows.append(np.concatenate(list(frames_BHWC[:SHOWN]), axis=1))
    Image.fromarray(np.concatenate(rows)).convert("L").save(PICTURE, optimize=True)
    return shares


def frame_times(folders: dict[str, Path], context_THWC: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds of a frame of one video, half and 95 % of them, by row; the rows in turns."""
    pipelines = {name: MagiPipeline.from_pretrained(folder) for name, folder in folders.items()}
    took: dict[str, list[float]] = {name: [] for name in folders}
    for seed in range(ROUNDS + 1):  # the first round prepares the samplers
        for name, pipeline in pipelines.items():
            frames = pipeline.stream(frames=CONTEXT + TIMED_FRAMES + 1, context=context_THWC, seeds=[seed])
            next(frames)
            times, last = [], time.perf_counter()
            for _ in frames:
                now = time.perf_counter()
                times.append((now - last) * 1e3)
                last = now
            took[name] += times if seed else []
    return {name: {f"p{n}": float(np.percentile(times, n)) for n in (50, 95)} for name, times in took.items()}


def main() -> None:
    """Make the copies, score and time them, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of videos, copies and samples")
    parser.add_argument("--one-step", type=Path, help="run or export of 'magi distill demo'")
    parser.add_argument("--count", type=int, default=128, help="clips")
    options = parser.parse_args()
    work: Path = options.work
    for name, seed, videos in (("held_out", HELD_OUT_SEED, max(128, options.count)), ("tune", TUNE_SEED, 64)):
        if not (work / name).exists():
            run("data", "digits", work / name, "--clips", videos, "--size", 64, "--seed", seed)
    folders, scores = copies(work, options.one_step), work / "scores"
    models = ",".join(f"{name}={folder}" for name, folder in folders.items())
    run("evaluate", "digits", models, work / "held_out", scores, "--count", options.count, "--batch", 32)
    result = read_result(scores / "result.json")
    assert result.ground_truth is not None
    clips = read_real_clips(work / "held_out", FIRST_FRAMES, CONTEXT)
    shares = first_frames(MagiPipeline.from_pretrained("demo"))
    shares["real"] = in_one_piece(np.stack([clip.video_THWC[0] for clip in clips]))
    machine, rows = machine_facts(torch.device("cpu")), list[dict[str, Any]]()
    busy = os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)
    if busy:
        print("other work keeps this machine busy: no times are taken; run the same command again when it is quiet")
    times = {} if busy else frame_times(folders, clips[0].video_THWC)
    for name in ("vae", *folders):
        ranges = result.ground_truth.series[name].ranges
        figures = {part: {metric: vars(one.value) for metric, one in found.items()} for part, found in ranges.items()}
        sampling = result.models[name].sampling if name in folders else None
        rows.append({"name": name, "sampling": sampling, "ms": times.get(name), "figures": figures})
    write_json(OUT, {
        "clips": options.count, "card_sha256": result.card_sha256, "machine": machine,
        "rows": rows, "first_frames": {"count": FIRST_FRAMES, "in_one_piece": shares},
    })  # fmt: skip
    print(OUT)


if __name__ == "__main__":
    sys.exit(main())
