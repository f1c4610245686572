"""Saving: a crash at any moment costs no good checkpoint."""

import builtins
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import magi.training.checkpoint as module
from magi.errors import CheckpointError
from magi.files import CHECKPOINTS_FOLDER, is_temporary
from magi.training.checkpoint import (
    Checkpoint,
    check_same_run,
    clear_unfinished,
    newest_checkpoint,
    quarantine_damaged,
    save_checkpoint,
)
from magi.weights import checkpoint_folders, load_ema, step_of, verify_manifest
from tests.fakes.training_runs import tiny_config


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(4, generator=generator)}
    return Checkpoint(tensors, tensors, {"exp_avg/weight": tensors["weight"] * 2}, {"step": step, "config": {}})


def anything(found: Checkpoint, folder: Path) -> None:
    """Refuse nothing."""


def found(run: Path) -> Checkpoint:
    checkpoint = newest_checkpoint(run, anything)
    assert checkpoint is not None
    return checkpoint


def steps(run: Path) -> list[int]:
    return [step_of(folder) for folder in checkpoint_folders(run)]


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = checkpoint(7)
    save_checkpoint(tmp_path, saved, keep=2)
    loaded = found(tmp_path)
    assert loaded.step == 7 and loaded.state == saved.state
    for left, right in ((loaded.model, saved.model), (loaded.ema, saved.ema), (loaded.optimizer, saved.optimizer)):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_newest_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert steps(tmp_path) == [100, 20]
    assert (tmp_path / CHECKPOINTS_FOLDER / "latest").read_text() == "step-000000100\n"
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS_FOLDER).iterdir()) == [
        "latest",
        "step-000000020",
        "step-000000100",
    ]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(3), keep=2)
    other = Checkpoint({"weight": torch.ones(1)}, {"weight": torch.ones(1)}, {}, {"step": 3})
    save_checkpoint(tmp_path, other, keep=2)
    assert found(tmp_path).model.keys() == {"weight"}


class Died(BaseException):
    """The process ends here: nothing after it runs, no error handling of ours either."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Make the ``at``-th call that changes the disk the last one; before it happens, or halfway through a write."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) > at:
                raise Died
            if len(calls) == at:
                if name == "save_file":
                    Path(inputs[1]).write_bytes(b"half")
                elif name == "write_text":
                    Path(inputs[0]).write_bytes(b"half")
                elif name == "rmtree":
                    next(path for path in Path(inputs[0]).rglob("*") if path.is_file()).unlink()
                raise Died
            return function(*inputs, **options)

        return call

    monkeypatch.setattr(module, "save_file", counted("save_file", module.save_file))
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    for name in ("mkdir", "rename", "write_text"):
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    return calls


def disk_calls_of_a_save(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for step in (1, 2):
            save_checkpoint(tmp_path / "count", checkpoint(step), keep=2)
        calls = dying(patch, at=1_000)
        save_checkpoint(tmp_path / "count", checkpoint(3), keep=2)
        return len(calls)


def test_death_at_any_moment_of_a_save_costs_no_good_checkpoint(tmp_path: Path) -> None:
    """Before or within every write, flush, rename and removal: what is found is whole, and no older than before."""
    total = disk_calls_of_a_save(tmp_path)
    assert total > 15
    newest = []
    for at in range(1, total + 1):
        run = tmp_path / str(at)
        for step in (1, 2):
            save_checkpoint(run, checkpoint(step), keep=2)
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, at)
            with pytest.raises(Died):
                save_checkpoint(run, checkpoint(3), keep=2)
        newest.append(found(run).step)
        for folder in checkpoint_folders(run):
            verify_manifest(folder)  # half-written and half-removed ones have another name
        latest = (run / CHECKPOINTS_FOLDER / "latest").read_text().strip()
        assert (run / CHECKPOINTS_FOLDER / latest).is_dir(), "latest names a checkpoint that is there"
        assert torch.equal(load_ema(run)["weight"], checkpoint(newest[-1]).ema["weight"])
        clear_unfinished(run)
        save_checkpoint(run, checkpoint(3), keep=2)
        assert steps(run) == [3, 2] and found(run).step == 3
        assert not list((run / CHECKPOINTS_FOLDER).glob(".tmp-*"))
    assert newest == sorted(newest) and set(newest) == {2, 3}


def test_every_file_is_flushed_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename must not find empty files: five files and their folder are flushed first."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flushed(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append("RENAME")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    before, after = events[: events.index("RENAME")], events[events.index("RENAME") + 1 :]
    files = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    written_as = {name.removeprefix(".").partition(".json.")[0] + ".json" for name in before if name.endswith(".part")}
    assert {name for name in before if not name.endswith(".part")} | written_as == files | {".tmp-step-000000001"}
    assert after[::2] == [CHECKPOINTS_FOLDER] * 2 and len(after) == 3 and is_temporary(after[1])
    assert after[1].startswith(".latest.")


def test_a_failed_save_cleans_up_and_says_that_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match=r"step-000000002.*No space left.*earlier checkpoints are untouched"):
        save_checkpoint(tmp_path, checkpoint(2), keep=2)
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS_FOLDER).iterdir()) == ["latest", "step-000000001"]


def test_damaged_ones_are_quarantined_and_not_counted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    (tmp_path / CHECKPOINTS_FOLDER / "step-000000003" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="falling back"):
        assert found(tmp_path).step == 2
    quarantine_damaged(tmp_path, 2)
    assert steps(tmp_path) == [2, 1]
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    assert steps(tmp_path) == [4, 2]


def test_a_folder_under_another_step_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), keep=2).rename(tmp_path / CHECKPOINTS_FOLDER / "step-000000009")
    with pytest.raises(CheckpointError, match="step 1 in the folder step-000000009"):
        found(tmp_path)


def test_config_that_may_and_may_not_change() -> None:
    config = tiny_config()
    saved = json.loads(json.dumps(config.model_dump(mode="json")))
    check_same_run(saved, tiny_config(steps=99, micro_batch=2, log_every=7, checkpoint_every=8, workers=3), Path("run"))
    with pytest.raises(CheckpointError, match=r"run: .*training\.learning_rate was 0\.003, now 0\.1; give"):
        check_same_run(saved, tiny_config(learning_rate=0.1), Path("run"))
    with pytest.raises(CheckpointError, match=r"made by another version.*frobnicate"):
        check_same_run(saved | {"frobnicate": 1}, config, Path("run"))
    with pytest.raises(CheckpointError, match=r"now 9.* and \d+ more"):
        different = {name: 9 for name in ("batch", "warmup_steps", "seed", "gradient_clip", "diffusion_batch_mul")}
        different |= {"learning_rate": 0.5, "ema_decay": 0.5, "weight_decay": 0.5, "beta1": 0.5, "beta2": 0.5}
        check_same_run(saved, tiny_config(**different, class_dropout=0.5), Path("run"))


def test_no_pickle_is_imported_to_read_or_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on the way from disk to tensors unpickles: it would be told here."""
    import pickle

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickle, "load", refused)
    monkeypatch.setattr(pickle, "loads", refused)
    monkeypatch.setattr(pickle, "Unpickler", refused)
    monkeypatch.setattr(builtins, "eval", refused)
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    assert found(tmp_path).step == 1
