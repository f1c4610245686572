"""Checkpoints: written beside, flushed, renamed, then ``latest`` moves, then old ones go (design: section 5 "On disk").

A crash at any moment leaves either the old set or the new one: a folder ``step-*`` is complete from the moment it has
that name, and it loses the name before it is deleted. Everything is safetensors and JSON, so reading one back runs no
code (``magi.weights`` reads). This module knows tensors by name and the config; no model, loop or process.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from magi.config import Config, parse_config
from magi.errors import CheckpointError
from magi.files import CHECKPOINTS_FOLDER, MANIFEST_FILE, MODEL_FILE
from magi.weights import (
    EMA_FILE,
    MANIFEST_FORMAT,
    OPTIMIZER_FILE,
    STATE_FILE,
    checkpoint_folders,
    newest_intact,
    read_json,
    read_tensors,
    sha256,
    shortened,
    step_folder,
    step_of,
)

LATEST_FILE = "latest"
_TEMPORARY = ".tmp-"
_MAY_CHANGE = (
    "training.steps",
    "training.cooldown_steps",
    "training.micro_batch",
    # Where and how the same arithmetic is done.
    "training.parallel",
    "training.activation_checkpointing",
    "training.compile",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.sample_every",
    # What the data and the autoencoder are is compared by content, so both may have moved.
    "data.root",
    "vae.weights",
    "data.workers",
    "data.max_bad_fraction",
    "vae.frames_per_batch",
    "sampling.",
)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run continues from: tensors by name, and ``state``: the step, the config, what the data was."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.state["step"])


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Publish a checkpoint, then remove all but the ``keep`` newest; on ``OSError`` (disk full) the old ones stay."""
    folder = run / CHECKPOINTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / step_folder(checkpoint.step)
    building = folder / f"{_TEMPORARY}{final.name}"
    _discard(building)
    try:
        _write_files(building, checkpoint)
    except (OSError, SafetensorError) as error:
        _discard(building)
        raise OSError(f"{final}: could not be written ({error}); earlier checkpoints are untouched") from error
    if final.exists():
        _remove(final)
    building.rename(final)
    _flush(folder)
    _point_latest(folder, final.name)
    for old in checkpoint_folders(run)[keep:]:
        _remove(old)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    parts = {MODEL_FILE: checkpoint.model, EMA_FILE: checkpoint.ema, OPTIMIZER_FILE: checkpoint.optimizer}
    for name, tensors in parts.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name)
    (folder / STATE_FILE).write_text(json.dumps(dict(checkpoint.state), indent=1), encoding="utf-8")
    entries = {}
    for name in (*parts, STATE_FILE):
        path = folder / name
        _flush(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"format": MANIFEST_FORMAT, "files": entries}, indent=1), encoding="utf-8")
    _flush(manifest)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_latest(folder: Path, name: str) -> None:
    building = folder / f"{_TEMPORARY}{LATEST_FILE}"
    building.write_text(name + "\n", encoding="utf-8")
    _flush(building)
    building.replace(folder / LATEST_FILE)
    _flush(folder)


def _remove(folder: Path) -> None:
    """Take a checkpoint's name away before its files, so that a half-removed one is never taken for a damaged one."""
    doomed = folder.with_name(f"{_TEMPORARY}old-{folder.name}")
    _discard(doomed)
    folder.rename(doomed)
    _discard(doomed)


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def clear_unfinished(run: Path) -> None:
    """Remove what a killed process left half-written; only the process that holds the run's lock may call it."""
    for entry in (run / CHECKPOINTS_FOLDER).glob(f"{_TEMPORARY}*"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def quarantine_damaged(run: Path, good: int) -> None:
    """Rename checkpoints newer than the one restored, which are damaged, so that they do not count as kept ones."""
    for folder in checkpoint_folders(run):
        if step_of(folder) > good:
            aside = folder.with_name(f"damaged-{folder.name}")
            _discard(aside)
            folder.rename(aside)


def find_checkpoint(run: Path) -> int:
    """Step of the newest intact checkpoint, hashes checked; 0 if there is none; ``CheckpointError`` if all are bad."""
    folder = newest_intact(run)
    return 0 if folder is None else step_of(folder)


def load_checkpoint(run: Path, step: int) -> Checkpoint:
    """Read the checkpoint of ``step``, which ``find_checkpoint`` has verified; ``CheckpointError`` if it cannot be."""
    folder = run / CHECKPOINTS_FOLDER / step_folder(step)
    state = read_json(folder / STATE_FILE)
    if state.get("step") != step:
        raise CheckpointError(
            f"{folder / STATE_FILE}: step {state.get('step')!r} in the folder of step {step}; the folders were swapped"
        )
    return Checkpoint(
        model=read_tensors(folder / MODEL_FILE),
        ema=read_tensors(folder / EMA_FILE),
        optimizer=read_tensors(folder / OPTIMIZER_FILE),
        state=state,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_same_run(saved: Mapping[str, Any], config: Config, source: Path) -> None:
    """Refuse to continue a run with another architecture, data, batch, seed or optimisation.

    ``CheckpointError`` lists the keys that differ. Length, intervals of logging and saving, loader workers,
    micro-batch and sampling may change.
    """
    try:
        before = _flat(parse_config(saved, str(source)).model_dump(mode="json"))
    except ValueError as error:
        raise CheckpointError(f"{source}: made by another version of magi ({str(error).splitlines()[0]})") from None
    now = _flat(config.model_dump(mode="json"))
    differing = [
        f"{key} was {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if before[key] != value and not key.startswith(_MAY_CHANGE)
    ]
    if differing:
        raise CheckpointError(
            f"{source}: the run was started with another config: {shortened(differing)}; "
            "give a new --run, or the old values"
        )
