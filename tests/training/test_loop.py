"""Runs in a folder: the claim that a stopped run and one that was never stopped are equal to the bit."""

import os
import signal
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch

from magi.config import Config
from magi.config_files import load_config
from magi.errors import CheckpointError, NumericsError, StoppedCleanly
from magi.files import CHECKPOINTS_FOLDER
from magi.model.magi import Magi
from magi.training.run_folder import locked
from magi.weights import checkpoint_folders, load_ema, read_tensors, step_folder
from tests.fakes.training_runs import BROKEN, Clips, in_two_parts, tiny_config, tiny_model, told, train_tiny

STEPS = 14


class Crash(Exception):
    """Stands for a process that dies."""


def final_bytes(run: Path, step: int = STEPS) -> list[bytes]:
    folder = run / CHECKPOINTS_FOLDER / step_folder(step)
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer")]


def resumable(workers: int) -> Config:
    return tiny_config(
        steps=STEPS, micro_batch=3, workers=workers, checkpoint_every=4, sample_every=1, model={"dropout": 0.2}
    )


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train_tiny(run, resumable(workers=0), picture=True)
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_never_having_stopped(workers: int, never_stopped: Path, tmp_path: Path) -> None:
    """Stopped by a signal in the middle of an epoch, then killed, then stopped again: same losses, same bits."""

    def interrupt(step: int, _: Magi) -> None:
        if step in (5, 10):
            signal.raise_signal(signal.SIGTERM)
        if step == 9 and not crashed:
            crashed.append(step)
            raise Crash

    crashed: list[int] = []
    config = resumable(workers)
    with pytest.raises(StoppedCleanly, match="after step 6"):
        train_tiny(tmp_path / "run", config, on_sample=interrupt)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "run", config, on_sample=interrupt)
    assert told(tmp_path / "run")[-1]["step"] == 9  # past the checkpoint of step 8, so it is written again
    with pytest.raises(StoppedCleanly, match="after step 11"):
        train_tiny(tmp_path / "run", config, on_sample=interrupt)
    train_tiny(tmp_path / "run", config)
    assert told(tmp_path / "run") == told(never_stopped)
    assert [line["step"] for line in told(never_stopped)] == list(range(1, STEPS + 1))
    assert final_bytes(tmp_path / "run") == final_bytes(never_stopped)


def test_a_run_with_gated_linear_attention_resumes_to_the_bit_and_refuses_weights_of_softmax(tmp_path: Path) -> None:
    config = tiny_config(model={"temporal": "gated_linear", "dropout": 0.2})
    train_tiny(tmp_path / "whole", config, Clips(BROKEN))
    in_two_parts(tmp_path / "resumed", config)
    assert final_bytes(tmp_path / "resumed", step=6) == final_bytes(tmp_path / "whole", step=6)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_ema(tmp_path / "whole", tiny_model(tiny_config()).state_dict())


def test_lengthening_a_run_is_the_longer_run(never_stopped: Path, tmp_path: Path) -> None:
    longer = resumable(workers=0)
    shorter = longer.model_copy(update={"training": longer.training.model_copy(update={"steps": 5, "log_every": 1})})
    train_tiny(tmp_path / "run", shorter)
    train_tiny(tmp_path / "run", longer)
    assert final_bytes(tmp_path / "run") == final_bytes(never_stopped)


def test_a_finished_run_is_left_alone(never_stopped: Path) -> None:
    before = final_bytes(never_stopped)
    train_tiny(never_stopped, resumable(workers=0), Clips(range(10_000)))
    assert final_bytes(never_stopped) == before


def test_run_folder_is_self_contained(never_stopped: Path) -> None:
    assert load_config(never_stopped / "config.yaml") == resumable(workers=0)
    assert (never_stopped / "classes.json").read_text() == '["a", "b", "c", "d", "e", "f", "g"]\n'
    assert (never_stopped / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [folder.name for folder in checkpoint_folders(never_stopped)] == ["step-000000014", "step-000000012"]
    assert (never_stopped / CHECKPOINTS_FOLDER / "latest").read_text() == "step-000000014\n"
    averaged = load_ema(never_stopped)
    raw = read_tensors(never_stopped / CHECKPOINTS_FOLDER / "step-000000014" / "model.safetensors")
    assert averaged.keys() == raw.keys() and not torch.equal(averaged["mask_token"], raw["mask_token"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number: signal.Signals, tmp_path: Path) -> None:
    handler = signal.getsignal(number)
    clips = Clips(on_clip=lambda sample: os.kill(os.getpid(), number) if sample == 9 else None)
    with pytest.raises(StoppedCleanly, match="after step 3, state saved") as stopped:
        train_tiny(tmp_path / "run", tiny_config(steps=50), clips)
    assert stopped.value.exit_code == 75
    assert checkpoint_folders(tmp_path / "run")[0].name == "step-000000003"
    assert signal.getsignal(number) == handler


def test_ten_non_finite_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    """Nine do not; the clips of every skipped step are on record, and the count goes on after a resume."""
    config = tiny_config(steps=40, checkpoint_every=1)
    train_tiny(tmp_path / "nine", tiny_config(steps=14), Clips(range(8, 44)))
    skipped = [line for line in told(tmp_path / "nine") if line.get("skipped")]
    assert [line["step"] for line in skipped] == list(range(3, 12)) and skipped[0]["samples"] == [8, 9, 10, 11]

    clips = Clips(range(8, 200), on_clip=lambda sample: signal.raise_signal(signal.SIGINT) if sample == 20 else None)
    with pytest.raises(StoppedCleanly):
        train_tiny(tmp_path / "ten", config, clips)
    with pytest.raises(NumericsError, match=r"10 steps in a row .* step 12 \(samples 44\.\.47\)") as ended:
        train_tiny(tmp_path / "ten", config, Clips(range(8, 200)))
    assert ended.value.exit_code == 4 and checkpoint_folders(tmp_path / "ten")


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
            train_tiny(tmp_path / "run", tiny_config())
    train_tiny(tmp_path / "run", tiny_config(steps=1))


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", tiny_config(steps=1))
    changed = tiny_config(steps=2, batch=3, seed=9, model={"width": 32})
    with pytest.raises(CheckpointError) as refused:
        train_tiny(tmp_path / "run", changed)
    for phrase in ("model.width was 16, now 32", "training.batch was 4, now 3", "training.seed was 0, now 9"):
        assert phrase in str(refused.value)
    assert "training.steps" not in str(refused.value)
    assert load_config(tmp_path / "run" / "config.yaml").training.seed == 0
    free = tiny_config(steps=2, log_every=2, checkpoint_every=3, sample_every=4, micro_batch=1, workers=1)
    train_tiny(tmp_path / "run", free)


def test_damaged_checkpoint_falls_back_says_so_and_is_trained_again(tmp_path: Path) -> None:
    config = tiny_config(steps=6, checkpoint_every=2)
    train_tiny(tmp_path / "run", config)
    before = final_bytes(tmp_path / "run", 6)
    path = tmp_path / "run" / CHECKPOINTS_FOLDER / step_folder(6) / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"ema\.safetensors: damaged.*falling back to step-000000004"):
        train_tiny(tmp_path / "run", config)
    assert final_bytes(tmp_path / "run", 6) == before
    assert (tmp_path / "run" / CHECKPOINTS_FOLDER / "damaged-step-000000006").is_dir()


def test_samples_are_drawn_from_a_model_of_its_own(tmp_path: Path) -> None:
    """Spoiling the model that the callback is given does not reach the run."""
    seen: list[int] = []

    def spoil(step: int, model: Magi) -> None:
        seen.append(step)
        torch.manual_seed(0)
        for value in model.parameters():
            value.data.zero_()

    train_tiny(tmp_path / "spoiled", tiny_config(steps=5, sample_every=2), on_sample=spoil)
    train_tiny(tmp_path / "plain", tiny_config(steps=5))
    assert seen == [2, 4, 5]
    assert final_bytes(tmp_path / "spoiled", 5)[:2] == final_bytes(tmp_path / "plain", 5)[:2]


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A periodic save may fail and training goes on; the last one may not."""
    import magi.training.checkpoint as checkpoint

    save, full = checkpoint.save_file, {4, 6}

    def full_disk(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if int(path.parent.name[-9:]) in full:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    config = tiny_config(steps=6, checkpoint_every=2)
    with pytest.raises(CheckpointError, match=r"No space left .* same command again"):
        train_tiny(tmp_path / "run", config)
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run")] == ["step-000000002"]
    full.clear()
    train_tiny(tmp_path / "run", config)
    assert told(tmp_path / "run")[-1]["step"] == 6


def test_what_cannot_be_told_or_drawn_does_not_end_a_run(tmp_path: Path) -> None:
    """Standard output on a full disk, and sample sheets that cannot be written."""

    def full(step: int, _: Magi) -> None:
        drawn.append(step)
        raise OSError(28, "No space left on device", "sheet.png")

    drawn: list[int] = []
    with suppress(OSError), open("/dev/full", "w", encoding="utf-8") as stream, redirect_stdout(stream):
        train_tiny(tmp_path / "run", tiny_config(steps=4, sample_every=2), on_sample=full)
    assert drawn == [2, 4] and told(tmp_path / "run")[-1]["step"] == 4
    assert checkpoint_folders(tmp_path / "run")[0].name == step_folder(4)
