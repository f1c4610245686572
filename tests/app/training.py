"""What a player does with a recording: unpack it, encode it and train on it, by the commands of docs/play.md."""

import json
import zipfile
from pathlib import Path

from magi.cli.main import main

MODEL_FRAMES = 16


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def train_two_steps(recording: Path, work: Path) -> None:
    """Two steps from the shipped game's weights on the zip that a page has downloaded."""
    zipfile.ZipFile(recording).extractall(work / "mine/1")
    run("encode", work / "mine", work / "latents", "--vae", "platform", "--height", 64, "--width", 64,
        "--actions", 6, "--device", "cpu")  # fmt: skip
    run(
        "train", "world-platform", "--run", work / "run", "--data.root", work / "latents", "--vae.weights", "platform",
        "--training.start-from", "platform", "--model.actions", 6, "--training.steps", 2, "--training.batch", 1,
        "--training.micro-batch", 0, "--training.warmup-steps", 0, "--training.cooldown-steps", 0,
        "--training.log-every", 1, "--training.sample-every", 0, "--device", "cpu",
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
