import gc
import io
from pathlib import Path

import pytest
from rich.console import Console

from magi.training.log import TrainingLog, draw_losses, drop_metrics_after, read_metrics, readable_time

LINE = {"loss": 1.0, "mse": 0.9, "vlb": 0.1, "gradient_norm": 0.5, "learning_rate": 1e-3, "clips_per_second": 7.0}


def write(run: Path, steps: list[int], last: int = 9) -> None:
    with TrainingLog(run, last, is_main=True) as log:
        for step in steps:
            log.advance(step)
            log.write({"step": step} | LINE)


def test_lines_past_the_restored_step_are_dropped_and_torn_ones_too(tmp_path: Path) -> None:
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    drop_metrics_after(tmp_path, 2)
    write(tmp_path, [3, 4])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [1, 3])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1/9  loss 1.0000  7.0 clips/s  ") and first.endswith(" left")
    assert second.startswith("step 3/9")


def test_a_bar_with_rate_and_time_left_on_a_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    log = TrainingLog(tmp_path, 9, is_main=True)
    log.console = Console(file=shown, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with log:
        log.write({"step": 3} | LINE)
        log.advance(3)
    assert "3/9" in shown.getvalue() and "7.0 clips/s" in shown.getvalue() and "0:00:0" in shown.getvalue()


def test_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingLog(tmp_path, 9, is_main=False) as log:
        log.write({"step": 1} | LINE)
        log.say("hello")
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_loss_curve_is_a_png_also_of_skipped_steps(tmp_path: Path) -> None:
    draw_losses(tmp_path)
    assert not (tmp_path / "loss.png").exists()
    write(tmp_path, list(range(1, 30)))
    with TrainingLog(tmp_path, 9, is_main=True) as log:
        log.write({"step": 30, "skipped": True, "samples": [1]})
    draw_losses(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_where_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TrainingLog(tmp_path, 9, is_main=True, tensorboard=True) as log:
        log.write({"step": 1} | LINE)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (200, "3 min 20 s"), (3720, "1 h 02 min")])
def test_readable_time(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png"])
def test_what_cannot_be_told_does_not_end_a_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a full disk: a folder lies where the file belongs."""
    write(tmp_path, [1])
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with TrainingLog(tmp_path, 9, is_main=True) as log:
        log.write({"step": 2} | LINE)
        log.draw(at_once=True)
    said = capsys.readouterr().out
    assert f"{name}: not written (Is a directory); training goes on" in said or name == "loss.png"
    assert "step 2/9" in said and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_no_picture_stays_in_memory(tmp_path: Path) -> None:
    """Even where the collector does not come by, as in training."""
    from matplotlib.figure import Figure

    write(tmp_path, [1])
    gc.collect()
    gc.disable()
    try:
        draw_losses(tmp_path)
        assert (tmp_path / "loss.png").stat().st_size and not any(isinstance(one, Figure) for one in gc.get_objects())
    finally:
        gc.enable()
