"""The same command in other ways: again, in other batches, threads, workers and processes, with the same bytes."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

from safetensors.torch import load_file

from studies.survival.commands import Ended, World, magi, newest, train
from studies.survival.report import Trial


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials: each of the ways in turn; the seed is that of training and of videos."""

    def trained(out: Path, *more: str, threads: int = 1) -> Ended:
        return train(out, world.latents, "--training.seed", str(seed), *more, threads=threads)

    def sampled(out: Path, batch: int, threads: int = 1) -> Ended:
        words = f"--frames 4 --count 8 --batch {batch} --seed {seed} --device cpu".split()
        return magi("sample", world.run, out, *words, threads=threads)

    def encoded(out: Path) -> Ended:
        world.encode(out, worker="1/2")
        return world.encode(out, worker="0/2")

    ways: dict[str, tuple[Callable[[Path], Ended], Callable[[Path], Ended]]] = {
        "train twice": (trained, trained),
        "train, 0 and 2 workers": (trained, lambda out: trained(out, "--data.workers", "2")),
        "train, 1 and 2 threads": (trained, lambda out: trained(out, threads=2)),
        "sample twice": (lambda out: sampled(out, 8), lambda out: sampled(out, 8)),
        "sample, batch 1 and 8": (lambda out: sampled(out, 1), lambda out: sampled(out, 8)),
        "sample, 1 and 2 threads": (lambda out: sampled(out, 8), lambda out: sampled(out, 8, threads=2)),
        "encode twice": (world.encode, world.encode),
        "encode, 1 and 2 processes": (world.encode, encoded),
    }
    kinds = [Trial(name, lambda pair=pair: _same(world, *pair)) for name, pair in ways.items()]  # type: ignore[misc]
    return islice(cycle(kinds), count)


def _same(world: World, one: Callable[[Path], Ended], other: Callable[[Path], Ended]) -> str:
    """Where the files differ that two commands write."""
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        outs = [Path(folder) / name for name in ("one", "other")]
        for command, out in zip((one, other), outs, strict=True):
            if (ended := command(out)).code:
                return f"exit code {ended.code}, {ended.said[-300:]}"
        trained = (outs[0] / "checkpoints").is_dir()
        whole, out = [newest(out) if trained else out for out in outs]
        # The state of a run tells its settings, such as the number of workers.
        differ = [name for name in differing(whole, out) if not trained or name.endswith(".safetensors")]
        sizes = [f"{name} by {_largest(whole / name, out / name):.1e}" for name in differ if trained]
        return f"other files: {', '.join(sizes or differ)}" if differ else ""


def _largest(one: Path, other: Path) -> float:
    """The largest difference between the numbers of two files of tensors with the same names."""
    first, second = load_file(one), load_file(other)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def differing(one: Path, other: Path, left_out: str = "") -> list[str]:
    """Files in two folders that are not the same to the byte; those in folders called ``left_out`` do not count."""
    files = [
        {path.relative_to(top): path for path in top.rglob("*") if path.is_file() and path.parent.name != left_out}
        for top in (one, other)
    ]
    both = files[0].keys() & files[1].keys()
    different = {path for path in both if files[0][path].read_bytes() != files[1][path].read_bytes()}
    return sorted(map(str, different | (files[0].keys() ^ files[1].keys())))
