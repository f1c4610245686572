"""The promises of ``studies.survival`` in small: the same trials, fewer of them; one that is broken is counted."""

import shutil
from pathlib import Path

import pytest

from studies.survival import canaries, damage, kills, memory, sameness
from studies.survival.commands import World, newest
from studies.survival.report import GOALS, Trial, conduct, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_damage_is_named_or_mended(world: World) -> None:
    assert conduct("damaged", damage.trials(world, 8, seed=1), 1)["failed"] == []


def test_a_killed_command_ends_as_if_it_had_not_been(world: World) -> None:
    assert conduct("kills", kills.trials(world, 4, seed=1), 1)["failed"] == []


def test_nothing_runs_and_the_same_bytes_are_written(world: World) -> None:
    assert conduct("canaries", canaries.trials(world, 4, seed=1), 1)["failed"] == []
    ways = [trial for trial in sameness.trials(world, 8, seed=1) if "threads" not in trial.kind]
    assert conduct("reproducibility", ways)["failed"] == []


def test_other_seeds_are_told_apart(world: World) -> None:
    assert sameness.differing(newest(world.run), newest(world.other)) and sameness._largest(
        *(newest(run) / "model.safetensors" for run in (world.run, world.other))
    )


def test_memory_that_grows_is_seen() -> None:
    assert not memory.growth([1000 + min(step, 20) * 50 for step in range(100)]), "warming up"
    assert memory.growth([1000 + step for step in range(100)]) == "grew by 3.8%"


def test_a_difference_after_a_kill_is_seen(world: World, tmp_path: Path) -> None:
    for of, other, what in (("train", world.other, "other losses"), ("latents", tmp_path, "other files: magi-latents")):
        whole = world.run if of == "train" else world.latents
        assert kills._difference(of, whole, other).startswith(what)
    assert not kills._difference("train", world.run, world.run)
    (tmp_path / ".magi-latents.json.0badc0de.part").touch()
    assert kills._difference("encode", world.latents, tmp_path).startswith("left behind: .magi")


def test_what_is_not_noticed_is_counted(world: World) -> None:
    """A checkpoint that is whole is not fallen back from, which a trial of damage must see."""
    trial = Trial("checkpoint", lambda: damage._falls_back(world, lambda folder: None, "nothing"))
    report = conduct("damaged", [trial, Trial("other", lambda: "")])
    assert (report["n"], report["failures"]) == (2, 1) and report["failed"][0].startswith("checkpoint: nothing: exit")


def test_other_weights_at_the_end_are_counted(world: World) -> None:
    def replaced(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(newest(world.other), folder)
        (folder / "model.safetensors").write_bytes(b"")
        previous = folder.with_name("step-000000004")
        shutil.rmtree(previous)
        shutil.copytree(newest(world.other).with_name(previous.name), previous)

    assert damage._falls_back(world, replaced, "other").startswith("other: ")


def test_a_report_names_its_goal(tmp_path: Path) -> None:
    path = write(conduct("damaged", []), tmp_path)
    assert path == tmp_path / "damaged.json" and str(GOALS["damaged"][0]) in path.read_text()
