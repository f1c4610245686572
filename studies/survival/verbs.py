"""The verbs that write, each as a function of the folder that it writes to: what kills and limits are tried on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.survival.commands import MODEL, TRAINING, Ended, World, magi, magi_together, train

Verb = Callable[..., Ended]
"""Writes into a folder; keywords are those of ``magi``: SIGKILL after some seconds, limits, environment."""

EVALUATED = "--frames 4 --context 2 --count 3 --batch 2 --size 32 --device cpu"
VAE = "--height 32 --width 32 --steps 6 --batch 4 --warmup-steps 2 --widths 8 8 --checkpoint-every 2 --log-every 1"


def verbs(world: World) -> dict[str, Verb]:
    """Name -> the command."""
    distilled = [word for word in TRAINING.split() if "frames" not in word]

    def command(*words: str | Path) -> Verb:
        def run(out: Path, **how: Any) -> Ended:
            return magi(*(out if word == "OUT" else word for word in words), **how)

        return run

    def index(out: Path, **how: Any) -> Ended:
        world.link_videos(out)
        return magi("data", "index", out, **how)

    return {
        "index": index,
        "encode": lambda out, **how: world.encode(out, **how),
        "train": lambda out, **how: train(out, world.latents, **how),
        "train, 2 workers": lambda out, **how: train(out, world.latents, "--data.workers", "2", **how),
        "train, 2 processes": lambda out, **how: magi_together(
            2,
            *("train", "digits", "--run", out, "--data.root", world.latents),
            *MODEL.split(),
            *TRAINING.split(),
            **how,
        ),
        "train-vae": command("train-vae", world.videos, "OUT", *VAE.split(), "--device", "cpu"),
        "sample": command(
            *("sample", world.run, "OUT", "--frames", "4", "--count", "6", "--batch", "1", "--device", "cpu")
        ),
        "evaluate": command("evaluate", "digits", f"tiny={world.export}", world.videos, "OUT", *EVALUATED.split()),
        "distill": command("distill", world.export, "OUT", "--data.root", world.latents, *distilled),
        "export": command("export", world.run, "OUT"),
    }
