"""Runs of studies: finished ones are not trained again, those of other settings are refused, stopping is passed on."""

import json
import sys
from pathlib import Path

import pytest

from magi.errors import StoppedCleanly
from studies import sources, variants
from studies.commands import run_command
from studies.measures import Measures
from studies.pendulum import record_pendulum
from studies.sources import Source, prepare, source
from studies.variants import (
    Budget,
    Run,
    StudyOptions,
    check_writable,
    load_or_train,
    measure,
    settings_of,
    training_options,
)
from tests.fakes.study_fakes import BUDGET, write_real, write_run


def options(tmp_path: Path, **given: object) -> StudyOptions:
    known: dict[str, object] = {"out": tmp_path / "out", "results": tmp_path / "results", "seeds": 2, "budget": BUDGET}
    return StudyOptions(**(known | {"device": "cpu"} | given))  # type: ignore[arg-type]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Run]:
    """The runs that would have been trained; a stand-in leaves their measures."""
    runs: list[Run] = []

    def stand_in(run: Run, place: Source, folder: Path, device: str) -> None:
        assert folder == run.folder(tmp_path / "out")
        runs.append(run)
        write_run(tmp_path / "out", run.variant, run.seed)

    monkeypatch.setattr(variants, "train", stand_in)
    monkeypatch.setattr(variants, "prepare", lambda place, device: None)
    return runs


def test_only_missing_runs_are_trained_and_a_second_call_trains_none(tmp_path: Path, trained: list[Run]) -> None:
    asked = options(tmp_path)
    write_real(asked.out)
    write_run(asked.out, "ctf", 0)
    found = load_or_train(asked, ["ctf", "mtf"])
    assert {name: len(seeds) for name, seeds in found.by_name.items()} == {"ctf": 2, "mtf": 2}
    assert [(run.variant, run.seed) for run in trained] == [("mtf", 0), ("ctf", 1), ("mtf", 1)]
    load_or_train(asked, ["ctf", "mtf"])
    assert len(trained) == 3


def test_seeds_come_in_their_order(tmp_path: Path, trained: list[Run]) -> None:
    asked = options(tmp_path, seeds=3)
    write_real(asked.out)
    found = load_or_train(asked, ["ctf"])
    means = [float(one["digits3d"].mean()) for one in found.by_name["ctf"]]
    assert means == sorted(means) and means[0] < means[2]


def test_measures_of_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("ctf", "digits", 0, BUDGET)
    path = write_run(tmp_path, "ctf", 0)

    def measured() -> Measures:
        return measure(run, source("digits", tmp_path), run.folder(tmp_path), "cpu")

    assert "digits3d" in measured()
    path.with_suffix(".json").write_text('{"settings": "ctf of another time"}')
    with pytest.raises(ValueError, match="other settings"):
        measured()
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="unknown settings"):
        measured()


def test_runs_are_trained_and_sampled_with_the_settings_of_their_variant() -> None:
    """Written out as ``magi train`` takes them: all but the variant's own settings are the same for all."""
    words = training_options(Run("mtf", "digits", 7, Budget(steps=400, batch=2, size="nano")))
    given = dict(zip(words[::2], words[1::2], strict=True))
    for name, value in {
        "--size": "nano", "--training.steps": 400, "--training.batch": 2, "--training.seed": 7,
        "--training.warmup-steps": 40, "--training.cooldown-steps": 100, "--sampling.iterations": 4,
        "--sampling.steps": 25, "--sampling.temperature": 0.9, "--model.teacher-forcing": "masked",
        "--data.interval-max": "4", "--model.noise-max": "0",
    }.items():  # fmt: skip
        assert given[name] == value, name
    other = training_options(Run("ctf-without-interval", "digits", 7, Budget(steps=400, batch=2, size="nano")))
    differing = {name for name, value in zip(other[::2], other[1::2], strict=True) if given.get(name) != value}
    assert differing == {"--model.teacher-forcing", "--data.interval-max", "--model.noise-max"}


def test_a_budget_is_short_below_the_clips_that_the_studies_are_meant_for() -> None:
    assert not Budget().is_short and Budget(steps=2999).is_short and Budget(batch=15).is_short


def test_settings_distinguish_runs() -> None:
    one = Run("ctf", "digits", 0, BUDGET)
    others = [Run("mtf", "digits", 0, BUDGET), Run("ctf", "pendulum", 0, BUDGET), Run("ctf", "digits", 1, BUDGET)]
    others.append(Run("ctf", "digits", 0, Budget(steps=5, batch=2)))
    assert len({settings_of(run) for run in [one, *others]}) == 5
    assert len({run.folder(Path()) for run in [one, *others]}) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"budget": Budget(steps=0)}, "--budget.steps 0"),
        ({"budget": Budget(batch=-1)}, "--budget.batch -1"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_or_train(options(tmp_path, **given), ["ctf"])


def test_unwritable_results_are_refused_before_training(tmp_path: Path, trained: list[Run]) -> None:
    (tmp_path / "file").write_text("")
    write_real(tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be written to"):
        load_or_train(options(tmp_path, results=tmp_path / "file"), ["ctf"])
    assert not trained
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_missing_gymnasium_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match="needs Gymnasium"):
        prepare(source("pendulum", tmp_path), "cpu")


def test_sources_train_on_other_videos_than_they_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr("studies.sources.magi", lambda *argv: commands.append(argv))
    prepare(Source("digits", tmp_path, 3, 2), "cpu")
    written = {words[2]: words[-1] for words in commands if words[:2] == ("data", "digits")}
    assert written == {tmp_path / "train": 0, tmp_path / "held_out": 1}
    assert commands[-1][:3] == ("encode", tmp_path / "train", tmp_path / "latents")


def test_a_command_that_fails_is_named_and_one_that_stopped_stops_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"train": 75, "encode": 3, "data": 0}
    given: list[list[str]] = []

    def stand_in(argv: list[str]) -> int:
        given.append(argv)
        return codes[argv[0]]

    monkeypatch.setattr("studies.sources.main", stand_in)
    sources.magi("data", "digits", Path("out"), "--clips", 3)
    assert given == [["data", "digits", "out", "--clips", "3"]]
    with pytest.raises(StoppedCleanly, match="the same command continues"):
        sources.magi("train", "digits")
    with pytest.raises(ValueError, match="'magi encode in' ended with exit code 3"):
        sources.magi("encode", "in", "out")


def test_errors_are_one_line_and_a_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(options: StudyOptions) -> None:
        raise StoppedCleanly("stopped; the same command continues")

    for argv, message in ((["--source", "atari"], "--source"), (["--sedes", "3"], "did you mean --seeds")):
        monkeypatch.setattr(sys, "argv", ["drift", *argv])
        with pytest.raises(SystemExit) as left:
            run_command("drift", StudyOptions, stopped)
        printed = capsys.readouterr().err
        assert left.value.code == 2 and len(printed.splitlines()) == 1 and message in printed
        assert "python -m studies.drift --help" in printed
    monkeypatch.setattr(sys, "argv", ["drift"])
    with pytest.raises(SystemExit) as left:
        run_command("drift", StudyOptions, stopped)
    assert left.value.code == 75


def test_episodes_of_the_pendulum_swing_freely_from_their_number(tmp_path: Path) -> None:
    record_pendulum(tmp_path / "a", 2, 0, 64)
    record_pendulum(tmp_path / "b", 1, 0, 64)
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*/*.mp4"))]
    assert files[0] == files[2] != files[1]
    facts = json.loads(next(tmp_path.glob("a/*_00000.json")).read_text())
    assert facts["frames"] == 120 and facts["actions"] == [None, *[[0.0]] * 119] and facts["fps"] == 30
