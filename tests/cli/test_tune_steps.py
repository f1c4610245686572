"""``magi tune-steps`` prints a table and writes the choice into the config alone; a mistake is one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magi.cli.main import main
from magi.config_files import load_config
from magi.data.moving_digits import write_digits
from magi.sampling import tune_steps
from magi.sampling.pretrained import write_config
from magi.sampling.tune_steps import ScoredSteps
from tests.cli.test_evaluate import untrained

SCORES = {1: 5.0, 2: 2.0, 3: 1.0, 4: 0.99, 6: 1.01}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_digits(tmp_path_factory.mktemp("held_out") / "videos", 3, size=32, seed=9, frames=32)
    return tmp_path_factory.getbasetemp() / "held_out0" / "videos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return untrained(tmp_path / "export", 32)


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Scores by the number of steps, and how many tokens they were of; the best schedule begins at 900."""
    seen: list[int] = []

    def best_placed(model: Any, settings: Any, held_out: Any, steps: int) -> ScoredSteps:
        seen.append(len(held_out.token_MC))
        return ScoredSteps(settings.changed(steps=steps, first_timestep=900, last_timestep=10 * steps), SCORES[steps])

    monkeypatch.setattr(tune_steps, "best_placed", best_placed)
    yield seen


def run(model: Path, videos: Path, *more: object) -> int:
    return main(["tune-steps", str(model), "--data", str(videos), "--device", "cpu", *map(str, more)])


def test_the_choice_is_written_beside_the_weights(
    model: Path, videos: Path, tokens: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(model / "config.yaml")
    config = config.model_copy(update={"sampling": config.sampling.changed(steps=6, fast_steps=0)})
    write_config(model, config)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert run(model, videos, "--steps", 1, 2, 3, 4, "--clips", 2, "--dry-run") == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert set(tokens) == {2 * 15 * 2}
    assert run(model, videos, "--steps", 1, 2, 3, 4) == 0
    assert tokens[-1] == 3 * 15 * 2, "no more clips than there are"
    placed = {"first_timestep": 900, "last_timestep": 60, "first_frame_steps": 6}
    fast = {"fast_steps": 3, "fast_first_timestep": 900, "fast_last_timestep": 30}
    fast["fast_score"] = round(SCORES[3] / SCORES[6], 4)
    expected = config.model_copy(update={"sampling": config.sampling.changed(**placed, **fast)})
    assert load_config(model / "config.yaml") == expected
    printed = capsys.readouterr().out
    assert "full: 6 steps, 900 to 60" in printed and "fast: 3 steps, 900 to 30" in printed
    assert run(model, videos, "--steps", 6) == 0, "no steps are fewer"
    assert load_config(model / "config.yaml").sampling == config.sampling.changed(**placed)


def test_a_schedule_of_a_real_head_is_found(model: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, videos, "--steps", 2, "--clips", 1) == 0
    line = capsys.readouterr().out.splitlines()[2].split()
    assert (
        line[0] == "2" and float(line[2]) <= float(line[1]) and load_config(model / "config.yaml").sampling.steps == 2
    )


def test_mistakes_are_one_line(model: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ((tmp_path / "none", videos), "none: no such folder"),
        ((tmp_path, videos), "neither a run nor an export"),
        ((model, tmp_path / "none"), "none: no such folder"),
        ((model, videos, "--steps", 0), "--steps 0: expected at least 1"),
        ((model, videos, "--clips", 0), "--clips 0: expected at least 1"),
        ((model, videos, "--steps", 1001), "--steps 1001: the model was trained with 1000 timesteps; ask for fewer"),
    ):
        assert run(*words) == 2  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_training_videos_are_warned_of(
    model: Path, videos: Path, tokens: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(model / "config.yaml")
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": str(videos)})})
    write_config(model, config)
    assert run(model, videos, "--steps", 2) == 0
    assert "what the model was trained on, which flatters its head" in capsys.readouterr().err
