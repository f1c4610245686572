"""The promises of ``studies.survival`` in small: the same trials, fewer of them; one that is broken is counted."""

import os
import shutil
from pathlib import Path

import av
import pytest

from studies.survival import canaries, damage, hostile, kills, limits, memory, overwritten, sameness
from studies.survival.commands import Ended, World, newest
from studies.survival.report import GOALS, Trial, conduct, write

pytestmark = pytest.mark.slow
ONE = "magi: error: out: no space left; free some\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_damage_is_named_or_mended(world: World) -> None:
    assert conduct("damaged", damage.trials(world, 8, seed=1), 1)["failed"] == []


def test_a_killed_command_ends_as_if_it_had_not_been(world: World) -> None:
    assert conduct("kills", kills.trials(world, 4, seed=1), 1)["failed"] == []


def test_hostile_videos_harm_nobody(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "A_FOLDER", 2)
    monkeypatch.setattr(hostile, "MUTATIONS", (hostile.playlist, hostile.flipped_bits, hostile.spliced))
    report = conduct("hostile", hostile.trials(world, 6, seed=1), 1)
    assert (report["n"], report["failed"]) == (6, []) and set(report["kinds"].values()) == {2}


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this build of FFmpeg writes no AV1")
def test_writing_av1_leaves_no_real_time_priority_behind(tmp_path: Path) -> None:
    """All that comes later would take a core from everything else; only root can be given it."""
    before = os.sched_getscheduler(0)
    hostile.write_video(tmp_path / "av1.mp4", "libsvtav1")
    assert os.sched_getscheduler(0) == before


def test_what_lies_outside_is_seen(tmp_path: Path) -> None:
    """As strace writes it: a file that is read or written elsewhere, and a host; not what fails or Python reads."""
    log, folder = tmp_path / "calls", tmp_path / "videos"
    log.write_text(
        f'12 openat(AT_FDCWD, "{folder}/a.mp4", O_RDONLY|O_CLOEXEC) = 5\n'
        f'12 openat(AT_FDCWD, "{folder}/magi-index-report.json", O_WRONLY|O_CREAT, 0666) = 5\n'
        f'12 openat(AT_FDCWD, "{tmp_path}/gone.ts", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        f'12 openat(AT_FDCWD, "{os.__file__}", O_RDONLY|O_CLOEXEC) = 5\n'
    )
    assert hostile.outside(log, folder) == []
    log.write_text(
        '12 openat(AT_FDCWD, "../secret.ts", O_RDONLY) = 5\n'
        '12 openat(AT_FDCWD, "/usr/x", O_RDWR|O_CREAT, 0666) = 5\n'
        '12 unlink("/usr/y") = 0\n'
        '12 connect(3, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, 16) = -1 EINPROGRESS\n'
    )
    found = " ".join(hostile.outside(log, folder))
    assert all(word in found for word in (f"read: {tmp_path}/secret.ts", "openat /usr/x", "unlink /usr/y", "a host"))


def test_what_is_overwritten_is_noticed_where_a_checksum_tells(world: World) -> None:
    trials = [trial for trial in overwritten.trials(world, 12, seed=1) if "hevc.mkv" in trial.kind]
    assert len(trials) == 2 and conduct("overwritten", trials)["failed"] == []


def test_a_lack_ends_in_one_line(world: World) -> None:
    tried = list(limits.trials(world, 63, seed=0))
    chosen = [next(trial for trial in tried if trial.kind.startswith(lack)) for lack in ("disk full", "64 desc")]
    assert conduct("limits", chosen)["failed"] == []


def test_what_is_not_one_line_is_seen() -> None:
    assert not limits._not_one_line(Ended(0, "video_0.mp4\n", 1)) and not limits._not_one_line(Ended(2, ONE, 1))
    for code, said in ((1, ONE), (-9, ""), (2, ONE + ONE), (2, "Traceback (most recent call last):\n" + ONE), (0, ONE)):
        assert limits._not_one_line(Ended(code, said, 1)).startswith(f"exit code {code}")


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
    for whole, other, what in (
        (world.run, world.other, "other losses"),
        (world.latents, tmp_path, "other files: magi-latents"),
    ):
        assert kills._difference(whole, other).startswith(what)
    assert not kills._difference(world.run, world.run)
    (tmp_path / ".magi-latents.json.0badc0de.part").touch()
    assert kills._difference(world.latents, tmp_path).startswith("left behind: .magi")


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
