"""Arms of studies: finished ones are not trained again, foreign ones are refused, and stopping is passed on."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from magi.errors import StoppedCleanly
from studies import running
from studies.commands import command, options_of
from studies.cost import frame_seconds, step_seconds, steps_done
from studies.processes import run_all
from studies.running import StudyOptions, check_writable, gathered
from studies.sources import Source, prepare, source
from studies.variants import ARMS, Arm, ArmName, Budget, load_measures, settings_of
from tests.fakes.study_fakes import BUDGET, write_arm, write_real


def options(tmp_path: Path, **given: object) -> StudyOptions:
    known: dict[str, object] = {"out": tmp_path / "out", "results": tmp_path / "results", "seeds": 2, "budget": BUDGET}
    return StudyOptions(**(known | {"device": "cpu"} | given))  # type: ignore[arg-type]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[object]]:
    """What would have been run, instead of running it; a stand-in leaves the measures of the arm."""
    commands: list[Sequence[object]] = []

    def stand_in(waiting: Sequence[Sequence[object]], jobs: int = 1) -> None:
        for words in waiting:
            commands.append(words)
            write_arm(Path(str(words[8])), str(words[2]), int(str(words[6])))

    monkeypatch.setattr(running, "run_all", stand_in)
    monkeypatch.setattr(running, "prepare", lambda place, device: None)
    return commands


def test_only_missing_arms_are_trained_and_a_second_call_trains_none(
    tmp_path: Path, trained: list[Sequence[object]]
) -> None:
    asked = options(tmp_path)
    write_real(asked.out)
    write_arm(asked.out, "ctf", 0)
    arms = gathered(asked, ["ctf", "mtf"])
    assert arms is not None and {name: len(seeds) for name, seeds in arms.by_name.items()} == {"ctf": 2, "mtf": 2}
    assert [(words[2], words[6]) for words in trained] == [("mtf", 0), ("ctf", 1), ("mtf", 1)]
    gathered(asked, ["ctf", "mtf"])
    assert len(trained) == 3


def test_seeds_come_in_their_order(tmp_path: Path, trained: list[Sequence[object]]) -> None:
    asked = options(tmp_path, seeds=3)
    write_real(asked.out)
    arms = gathered(asked, ["ctf"])
    assert arms is not None
    means = [float(one["digits3d"].mean()) for one in arms.by_name["ctf"]]
    assert means == sorted(means) and means[0] < means[2]


def test_measures_of_other_settings_are_refused(tmp_path: Path) -> None:
    arm = Arm("ctf", "digits", 0, BUDGET)
    path = write_arm(tmp_path, "ctf", 0)
    assert load_measures(arm, arm.folder(tmp_path)) is not None
    path.with_suffix(".json").write_text('{"settings": "ctf of another time"}')
    with pytest.raises(ValueError, match="other settings"):
        load_measures(arm, arm.folder(tmp_path))
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        load_measures(arm, arm.folder(tmp_path))
    path.unlink()
    assert load_measures(arm, arm.folder(tmp_path)) is None


def test_settings_tell_arms_apart() -> None:
    one = Arm("ctf", "digits", 0, BUDGET)
    others = [Arm("mtf", "digits", 0, BUDGET), Arm("ctf", "pendulum", 0, BUDGET), Arm("ctf", "digits", 1, BUDGET)]
    others.append(Arm("ctf", "digits", 0, Budget(steps=5, batch=2)))
    assert len({settings_of(arm) for arm in [one, *others]}) == 5
    assert len({arm.folder(Path()) for arm in [one, *others]}) == 5
    assert set(ArmName.__args__) == set(ARMS)


def test_cost_is_told_before_anything_is_done(
    tmp_path: Path, trained: list[Sequence[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(tmp_path, dry_run=True)
    arm = Arm("ctf", "digits", 0, BUDGET)
    run = arm.folder(asked.out) / "run"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 3, "loss": 1, "clips_per_second": 0.5}\n')
    assert gathered(asked, ["ctf", "mtf"]) is None
    told = capsys.readouterr().out
    assert "4 arms (ctf, mtf), 0 done" in told and not trained
    # 4 runs of 4 steps, 3 of them done; a step of 2 clips takes 4 s.
    assert "4 runs, 13 steps of 2 clips, 26 clips (4 s a step, median of 1 lines" in told and "to prepare" in told
    # 256 clips of 15 frames and 64 of 100 an arm, the latter twice for 'ctf'.
    assert f"to generate: {4 * (256 * 15 + 64 * 100) + 2 * 64 * 100} frames" in told and "in all, 1 at a time" in told
    assert not asked.results.exists()


def test_time_of_a_step_is_measured_where_nothing_was_trained(tmp_path: Path) -> None:
    asked = options(tmp_path, budget=Budget(steps=1, batch=1))
    seconds, origin = step_seconds(
        [Arm("ctf", "digits", 0, asked.budget)], asked.out, asked.budget, torch.device("cpu")
    )
    assert 0 < seconds < 60 and "measured over" in origin
    assert steps_done(tmp_path) == 0
    assert 0 < frame_seconds(Budget(size="nano"), torch.device("cpu")) < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"jobs": 0}, "--jobs 0"),
        ({"budget": Budget(steps=0)}, "--budget.steps 0"),
        ({"budget": Budget(batch=-1)}, "--budget.batch -1"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gathered(options(tmp_path, **given), ["ctf"])


def test_unwritable_results_are_refused_before_training(tmp_path: Path, trained: list[Sequence[object]]) -> None:
    (tmp_path / "file").write_text("")
    write_real(tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be written to"):
        gathered(options(tmp_path, results=tmp_path / "file"), ["ctf"])
    assert not trained
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_missing_gymnasium_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.sources.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs Gymnasium"):
        prepare(source("pendulum", tmp_path), "cpu")


def test_sources_train_on_other_videos_than_they_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr("studies.sources.magi", lambda *words: commands.append(words))
    prepare(Source("digits", tmp_path, 3, 2, 10), "cpu")
    written = {words[2]: words[-1] for words in commands if words[:2] == ("data", "digits")}
    assert written == {tmp_path / "train": 0, tmp_path / "held_out": 1}
    assert commands[-1][:3] == ("encode", tmp_path / "train", tmp_path / "latents")


def write(code: str) -> list[object]:
    return ["-c", code]


def test_commands_run_in_order_and_failures_are_named(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def line(word: str, code: int = 0) -> list[object]:
        return write(f"import sys; open({str(log)!r}, 'a').write('{word} '); sys.exit({code})")

    with pytest.raises(ValueError, match="exit code 3"):
        run_all([line("a"), line("b", 3), line("c")])
    assert log.read_text() == "a b c "


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    """Each of two waits for the other's file: one after the other, neither would end."""
    meet = (
        "import time, pathlib as p; p.Path({0!r}).touch()\nfor _ in range(600):\n  if p.Path({1!r}).exists(): break\n"
    )
    meet += "  time.sleep(0.05)\nelse: raise SystemExit(9)"
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    run_all([write(meet.format(one, other)), write(meet.format(other, one))], jobs=2)


def test_jobs_side_by_side_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.processes.os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "log"
    tell = write(f"import os; open({str(log)!r}, 'a').write(os.environ.get('OMP_NUM_THREADS', 'own') + ' ')")
    run_all([tell], jobs=2)
    run_all([tell], jobs=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what a user sets stays
    run_all([tell], jobs=2)
    assert log.read_text() == "4 own 3 "


def test_a_child_that_was_stopped_stops_the_study() -> None:
    with pytest.raises(StoppedCleanly, match="the same command continues"):
        run_all([write("raise SystemExit(75)"), write("raise SystemExit(9)")])


def test_a_signal_is_passed_on_to_the_child_and_nothing_new_begins(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = "import os, signal, sys, time\n"
    child += f"signal.signal(signal.SIGTERM, lambda *_: (open({str(log)!r}, 'a').write('saved '), sys.exit(75)))\n"
    child += "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    with pytest.raises(StoppedCleanly):
        run_all([write(child), write(f"open({str(log)!r}, 'a').write('begun ')")])
    assert log.read_text() == "saved "


def test_errors_are_one_line_and_a_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def parsed() -> None:
        options_of(StudyOptions, "studies.drift")

    for words, told in (
        (["--source", "atari"], "--source"),
        (["--sedes", "3"], "did you mean --seeds"),
    ):
        monkeypatch.setattr(sys, "argv", ["drift", *words])
        with pytest.raises(SystemExit) as left:
            command(parsed)
        said = capsys.readouterr().err
        assert left.value.code == 2 and len(said.splitlines()) == 1 and told in said
        assert "python -m studies.drift --help" in said

    def stopped() -> None:
        raise StoppedCleanly("stopped; the same command continues")

    with pytest.raises(SystemExit) as left:
        command(stopped)
    assert left.value.code == 75
