"""A checkpoint whose manifest agrees and whose content does not fit: it is named, and an older one is continued.

The bytes are those that were written, so hashes say nothing: names, shapes, types, finiteness and fields are looked at.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from magi.errors import CheckpointError
from magi.files import CHECKPOINTS_FOLDER, METRICS_FILE
from magi.model.magi import Magi
from magi.training.checkpoint import newest_checkpoint
from magi.training.log import draw_losses, drop_metrics_after
from magi.training.trainer import Trainer
from magi.weights import load_ema, step_folder
from studies.survival.damage import CHANGES, MUTATIONS, sign
from tests.fakes.training_runs import LATENT, ONE_PROCESS, Clips, tiny_config, tiny_model, told, train_tiny

CONFIG = tiny_config(steps=4, checkpoint_every=2)
PARTS = ("model", "ema", "optimizer")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(run, CONFIG)
    return run


def newest(run: Path) -> Path:
    return run / CHECKPOINTS_FOLDER / step_folder(4)


@pytest.mark.parametrize("what", MUTATIONS)
def test_content_that_does_not_fit_is_named_and_the_older_one_taken(what: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    MUTATIONS[what](newest(run))
    sign(newest(run))
    trainer = Trainer(CONFIG, Clips(), None, tiny_model(CONFIG), ONE_PROCESS)
    with pytest.warns(UserWarning, match="step-000000004.*; falling back to step-000000002") as warned:
        found = newest_checkpoint(run, trainer.check)
    assert found is not None and found.step == 2
    assert all("\n" not in str(warning.message) for warning in warned)


@pytest.mark.parametrize("what", ["model: bool", "ema: NaN", "optimizer: missing", "state: no skips_in_a_row"])
def test_a_run_goes_on_from_the_older_one_as_if_nothing_had_been(what: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    MUTATIONS[what](newest(run))
    sign(newest(run))
    with pytest.warns(UserWarning, match="step-000000004.*; falling back to step-000000002"):
        train_tiny(run, CONFIG)
    for part in PARTS:
        name = f"{part}.safetensors"
        assert (newest(run) / name).read_bytes() == (newest(finished) / name).read_bytes()
    assert told(run) == told(finished) and (newest(run).parent / f"damaged-{step_folder(4)}").is_dir()


def test_every_part_is_checked_where_no_other_is_left(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / CHECKPOINTS_FOLDER / step_folder(2))
    MUTATIONS["optimizer: missing"](newest(run))
    sign(newest(run))
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: .* missing; .*no good checkpoint is left"):
        train_tiny(run, CONFIG)
    assert newest(run).is_dir(), "nothing is renamed where nothing else is left"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_file_without_read_permission_is_named_and_the_older_one_taken(
    name: str, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (newest(run) / name).chmod(0)
    with pytest.warns(UserWarning, match=rf"{name}: cannot be read \(Permission denied\).*falling back"):
        train_tiny(run, CONFIG)


def test_a_file_that_cannot_be_read_is_named_and_the_older_one_taken(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without read permission, which root does not meet."""
    run, opened = shutil.copytree(finished, tmp_path / "run"), Path.open

    def refused(path: Path, *options: Any, **more: Any) -> Any:
        if path == newest(run) / "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.warns(UserWarning, match=r"model\.safetensors: cannot be read \(Permission denied\).*falling back"):
            train_tiny(run, CONFIG)


@pytest.mark.parametrize("what", CHANGES)
def test_sampling_falls_back_too(what: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    MUTATIONS[f"ema: {what}"](newest(run))
    sign(newest(run))
    wanted = Magi(CONFIG.model, LATENT, torch.Generator()).state_dict()
    with pytest.warns(UserWarning, match="step-000000004.*; falling back to step-000000002"):
        held = load_ema(run, wanted)
    assert torch.equal(
        held["mask_token"], load_file(newest(run).with_name(step_folder(2)) / "ema.safetensors")["mask_token"]
    )


def test_a_run_whose_first_steps_were_all_skipped_has_no_optimizer_yet(tmp_path: Path) -> None:
    train_tiny(tmp_path, tiny_config(steps=2), Clips(range(8)))
    train_tiny(tmp_path, tiny_config(steps=3), Clips(range(8)))
    assert [line["step"] for line in told(tmp_path)] == [1, 2, 3] and "loss" in told(tmp_path)[-1]


STRANGE_LINES = [
    "7", "[]", "[1, 2]", '"text"', "null", "true", "{}", '{"step": "2"}', '{"step": null}', '{"step": true}',
    '{"step": 2.5}', '{"step": 1, "loss": "low"}', '{"step": 1, "loss": NaN}', '{"step": 1, "seconds": "long"}',
    '{"step": 1, "seconds": 1' + "0" * 400 + "}", "1" * 5000, "[" * 100_000, '{"step": 1, "lo', "\x00\xff",
    '{"step": 1, "loss": 1.0}', '{"step": 1, "mse": [1]}', "",
]  # fmt: skip


@pytest.mark.parametrize("line", STRANGE_LINES, ids=lambda line: line[:30])
def test_a_strange_line_of_metrics_is_left_out(line: str, finished: Path, tmp_path: Path) -> None:
    good = (finished / METRICS_FILE).read_text()
    (tmp_path / METRICS_FILE).write_text(f"{line}\n{good}{line}", encoding="latin-1")
    drop_metrics_after(tmp_path, 3)
    draw_losses(tmp_path)
    assert [line for line in told(tmp_path) if "mse" in line] == told(finished)[:3]


def test_strange_lines_of_metrics_do_not_stop_a_resume(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    with (run / METRICS_FILE).open("a", encoding="latin-1") as file:
        file.write("\n".join(STRANGE_LINES))
    train_tiny(run, tiny_config(steps=5, checkpoint_every=2))
    ours = [line for line in told(run) if "mse" in line]
    assert ours[:-1] == told(finished) and ours[-1]["step"] == 5
