"""Checkpoints: written beside, flushed, renamed, then ``latest`` moves, then old ones go (design: section 5 "On disk").

A crash at any moment leaves either the old set or the new one: a folder ``step-*`` is complete from the moment it has
that name, and it loses the name before it is deleted. Everything is safetensors and JSON, so reading one back runs no
code (``magi.weights`` reads). This module knows tensors by name and the config; no model, loop or process.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from magi.config import Config
from magi.config_files import parse_config
from magi.errors import CheckpointError, OtherRunError
from magi.files import CHECKPOINTS_FOLDER, MODEL_FILE, write_text
from magi.weights import (
    EMA_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    check_tensors,
    checkpoint_folders,
    newest_good,
    read_json,
    read_tensors,
    shortened,
    step_folder,
    step_of,
    verify_manifest,
    write_manifest,
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
    "training.start_from",  # weights of step 0; a checkpoint has its own
    # What the data and the autoencoder are is compared by content, so both may have moved.
    "data.root",
    "data.text_states",
    "vae.weights",
    "data.workers",
    "data.max_bad_fraction",
    "vae.frames_per_batch",
    "sampling.",
    # Of the small autoencoder's training.
    "log_every",
    "checkpoint_every",
    "workers",
    "max_bad_fraction",
)
_MAY_BE_UNKNOWN = {"vae": "the autoencoder", "data": "the data", "teacher": "the frozen weights"}
"""Fields of the state that tell another run's, or are None, and their names in words."""


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
        if final.exists():
            _remove(final)
        building.rename(final)
        _flush(folder)
        write_text(folder / LATEST_FILE, final.name + "\n")
        _flush(folder)
    except (OSError, SafetensorError) as error:
        _discard(building)
        raise OSError(f"{final}: could not be written ({error}); earlier checkpoints are untouched") from error
    for old in checkpoint_folders(run)[keep:]:
        _remove(old)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    parts = {MODEL_FILE: checkpoint.model, EMA_FILE: checkpoint.ema, OPTIMIZER_FILE: checkpoint.optimizer}
    for name, tensors in parts.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name)
    (folder / STATE_FILE).write_text(json.dumps(dict(checkpoint.state), indent=1), encoding="utf-8")
    for name in (*parts, STATE_FILE):
        _flush(folder / name)
    write_manifest(folder, (*parts, STATE_FILE))
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def newest_checkpoint(run: Path, check: Callable[[Checkpoint, Path], None]) -> Checkpoint | None:
    """The newest checkpoint whose hashes are right and which ``check`` does not refuse; None if there is none.

    ``CheckpointError`` if all are refused.
    """

    def read(folder: Path) -> Checkpoint:
        verify_manifest(folder)
        checkpoint = load_checkpoint(folder)
        check(checkpoint, folder)
        return checkpoint

    return newest_good(run, read)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that was verified; ``CheckpointError`` if it cannot be."""
    state = read_json(folder / STATE_FILE)
    if type(step := state.get("step")) is not int or step != step_of(folder):
        raise CheckpointError(f"{folder / STATE_FILE}: step {step!r} in the folder {folder.name}; they were swapped")
    return Checkpoint(
        model=read_tensors(folder / MODEL_FILE),
        ema=read_tensors(folder / EMA_FILE),
        optimizer=read_tensors(folder / OPTIMIZER_FILE),
        state=state,
    )


def check_checkpoint(found: Checkpoint, own: Checkpoint, config: BaseModel, folder: Path) -> None:
    """Refuse a checkpoint that the run of ``config`` cannot continue from.

    ``own`` is what the run itself would save, of any values, with the optimizer's tensors of every parameter; a
    checkpoint from before the first step that was not skipped has none of them. ``CheckpointError`` where fields or
    tensors are not those of ``own`` or numbers are not finite, ``OtherRunError`` for another config, data or
    autoencoder.
    """
    for field, value in own.state.items():
        given = found.state.get(field, "missing")
        unknown = field in _MAY_BE_UNKNOWN and None in (given, value)
        if field not in found.state or (type(given) is not type(value) and not unknown):
            raise CheckpointError(
                f"{folder / STATE_FILE}: damaged, {field} is {given!r}, expected {type(value).__name__}; "
                "use another checkpoint"
            )
    check_same_run(found.state["config"], config, folder)
    for field, name in _MAY_BE_UNKNOWN.items():
        before, now = found.state.get(field), own.state.get(field)
        if before != now:
            raise OtherRunError(
                f"{folder}: the run was started with {name} {before}, now {now}; give another folder, or that one"
            )
    check_tensors(own.model, found.model, folder / MODEL_FILE)
    check_tensors(own.ema, found.ema, folder / EMA_FILE)
    stepped = found.state["skips_in_a_row"] < found.step
    check_tensors(own.optimizer if stepped else {}, found.optimizer, folder / OPTIMIZER_FILE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_same_run(saved: Mapping[str, Any], config: BaseModel, source: Path) -> None:
    """Refuse to continue a run with another architecture, data, batch, seed or optimisation.

    ``OtherRunError`` lists the keys that differ. Length, intervals of logging and saving, loader workers,
    micro-batch and sampling may change.
    """
    try:
        found = parse_config(saved, str(source)) if isinstance(config, Config) else type(config).model_validate(saved)
    except ValueError as error:
        raise OtherRunError(f"{source}: made by another version of magi ({str(error).splitlines()[0]})") from None
    before, now = (_flat(values.model_dump(mode="json")) for values in (found, config))
    differing = [
        f"{key} was {before[key]!r}, now {value!r}"
        for key, value in now.items()
        if before[key] != value and not key.startswith(_MAY_CHANGE)
    ]
    if differing:
        raise OtherRunError(
            f"{source}: the run was started with another config: {shortened(differing)}; "
            "give another folder, or the old values"
        )
