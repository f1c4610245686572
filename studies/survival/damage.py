"""Damage to what a run reads: files cut, changed, emptied, lost or mixed up, and content that does not fit."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi.weights import sha256
from studies.survival.commands import World, magi, newest, train
from studies.survival.report import Trial

Damage = Callable[[Path], object]


def sign(folder: Path) -> None:
    """Let the manifest of a checkpoint agree with what is in its files now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    path.write_text(json.dumps(manifest))


def tensors(part: str, change: Callable[[dict[str, Tensor], str], object]) -> Damage:
    """Change the file ``part``, given its tensors and the name of the last one that is a matrix."""

    def damage(folder: Path) -> None:
        path = folder / f"{part}.safetensors"
        held = load_file(path)
        change(held, [name for name, tensor in held.items() if tensor.ndim == 2][-1])
        save_file(held, path)

    return damage


def field(name: str, *value: Any) -> Damage:
    """Give a field of state.json another value, or none."""

    def damage(folder: Path) -> None:
        path = folder / "state.json"
        state = json.loads(path.read_text())
        del state[name]
        path.write_text(json.dumps(state | dict.fromkeys([name], *value) if value else state))

    return damage


def filled(value: float) -> Callable[[dict[str, Tensor], str], object]:
    return lambda held, name: held[name].view(-1)[0].fill_(value)


CHANGES: dict[str, Callable[[dict[str, Tensor], str], object]] = {
    "bool": lambda held, name: held.update({key: value.bool() for key, value in held.items()}),
    "int": lambda held, name: held.update({name: held[name].int()}),
    "float16": lambda held, name: held.update({name: held[name].half()}),
    "complex": lambda held, name: held.update({name: held[name].to(torch.complex64)}),
    "missing": lambda held, name: held.pop(name),
    "more": lambda held, name: held.update({f"{name}.more": torch.zeros(2)}),
    "transposed": lambda held, name: held.update({name: held[name].reshape(held[name].shape[::-1]).contiguous()}),
    "flattened": lambda held, name: held.update({name: held[name].flatten()}),
    "empty": lambda held, name: held.clear(),
    "NaN": filled(float("nan")),
    "infinite": filled(float("inf")),
}
PARTS = ("model", "ema", "optimizer")
WRONG_FIELDS: list[tuple[str, Any]] = [
    ("step", True), ("step", "4"), ("step", 3), ("step", 4.0), ("skips_in_a_row", None), ("skips_in_a_row", "0"),
    ("skips_in_a_row", [0]), ("config", []), ("config", "x"), ("config", {"model": 3}), ("config", {}),
]  # fmt: skip
MUTATIONS: dict[str, Damage] = {
    **{f"{part}: {what}": tensors(part, change) for part in PARTS for what, change in CHANGES.items()},
    **{f"state: no {name}": field(name) for name in ("step", "skips_in_a_row", "config", "vae", "data")},
    **{f"state: {name} {value!r}": field(name, value) for name, value in WRONG_FIELDS},
    "state: other data": field("data", "3 videos 0123"),
}
"""What -> how to change a checkpoint so that its files are whole and its content does not fit."""


def cut(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(draw.randrange(1, path.stat().st_size))


def flipped(path: Path, draw: random.Random) -> None:
    held = bytearray(path.read_bytes())
    held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
    path.write_bytes(held)


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def lost(path: Path, draw: random.Random) -> None:
    path.unlink()


def mixed_up(path: Path, draw: random.Random) -> None:
    other = draw.choice([one for one in sorted(path.parent.iterdir()) if one.is_file() and one != path])
    shutil.copyfile(other, path)


WITHOUT_HASH = (cut, emptied, lost, mixed_up)
WITH_HASH = (*WITHOUT_HASH, flipped)
CHECKPOINT = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
EXPORT = ("model.safetensors", "config.yaml")
LATENTS = ("magi-latents.json", "shard-00000.jsonl", "shard-00000.safetensors")
INDEX = "magi-index.safetensors"


def trials(world: World, count: int, seed: int) -> Iterator[Trial]:
    """``count`` trials, of all kinds in turn; where a byte is cut or flipped is drawn."""
    draw = random.Random(seed)
    kinds = [
        *(_checkpoint(world, name, how, draw) for name in CHECKPOINT for how in WITH_HASH),
        *(_content(world, what) for what in MUTATIONS),
        *(_other_run(world, name) for name in CHECKPOINT if name != "manifest.json"),
        *(_export(world, name, how, draw) for name in EXPORT for how in WITHOUT_HASH),
        _export(world, "model.safetensors", flipped, draw),
        *(_latents(world, name, how, draw) for name in LATENTS for how in WITHOUT_HASH),
        *(_index(world, how, draw) for how in WITHOUT_HASH),
    ]
    draw.shuffle(kinds)  # a short form, too, has some of each
    return islice(cycle(kinds), count)


def _checkpoint(world: World, name: str, how: Callable[[Path, random.Random], None], draw: random.Random) -> Trial:
    return Trial(
        "checkpoint", lambda: _falls_back(world, lambda folder: how(folder / name, draw), f"{how.__name__} {name}")
    )


def _other_run(world: World, name: str) -> Trial:
    def damage(folder: Path) -> None:
        shutil.copyfile(newest(world.other) / name, folder / name)

    return Trial("checkpoint", lambda: _falls_back(world, damage, f"{name} of another run"))


def _content(world: World, what: str) -> Trial:
    def damage(folder: Path) -> None:
        MUTATIONS[what](folder)
        sign(folder)

    return Trial("content", lambda: _falls_back(world, damage, what))


def _falls_back(world: World, damage: Damage, what: str) -> str:
    """Damage the newest checkpoint; training must go on from the one before, and end with the same weights."""
    with world.copy(world.run) as run:
        damage(newest(run))
        ended = train(run, world.latents)
        if ended.code or "falling back to step-000000004" not in ended.said:
            return f"{what}: exit code {ended.code}, {last_line(ended.said)}"
        names = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
        same = all((newest(run) / name).read_bytes() == (newest(world.run) / name).read_bytes() for name in names)
        return "" if same else f"{what}: other weights at the end"


def _export(world: World, name: str, how: Callable[[Path, random.Random], None], draw: random.Random) -> Trial:
    def run() -> str:
        with world.copy(world.export) as export:
            how(export / name, draw)
            out = export.parent / "out"
            return _named(magi("sample", export, out, "--frames", "2", "--device", "cpu"), how, name, (2, 5))

    return Trial("export", run)


def _latents(world: World, name: str, how: Callable[[Path, random.Random], None], draw: random.Random) -> Trial:
    def run() -> str:
        with world.copy(world.latents) as latents:
            how(latents / name, draw)
            return _named(train(latents.parent / "run", latents), how, name, (2, 3))

    return Trial("latents", run)


def _index(world: World, how: Callable[[Path, random.Random], None], draw: random.Random) -> Trial:
    """A damaged index is made again, the same to the byte."""

    def run() -> str:
        with world.copy(world.videos) as videos:
            how(videos / INDEX, draw)
            ended = magi("data", "index", videos)
            same = ended.code == 0 and (videos / INDEX).read_bytes() == (world.videos / INDEX).read_bytes()
            return "" if same else f"{how.__name__} {INDEX}: exit code {ended.code}, {last_line(ended.said)}"

    return Trial("index", run)


def _named(ended: Any, how: Callable[[Path, random.Random], None], name: str, codes: tuple[int, ...]) -> str:
    said = last_line(ended.said)
    kept = ended.code in codes and said.startswith("magi: ") and name.split(".")[0] in said
    return "" if kept else f"{how.__name__} {name}: exit code {ended.code}, {said}"


def last_line(said: str) -> str:
    """What it was about, without the folders above, which are other ones every time."""
    return re.sub(r"/\S+/", "", (said.strip().splitlines() or ["nothing said"])[-1])[:300]
