import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from magi.training.run_folder import StopRequest, locked


def test_lock_is_held_named_and_freed(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    with locked(run):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()}; .*another --run"), locked(run):
            pass
    with locked(run):
        pass


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    """A process that was killed leaves its file behind, but not its lock."""
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert (tmp_path / "lock").read_text() == f"{child}\n"
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"run: cannot be used as a run folder"), locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_no_file_in_the_place_of_the_lock_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "lock")
    words = r"cannot be used as a run folder \(lock: (is not a regular file|Is a directory)\); give"
    with pytest.raises(ValueError, match=words), locked(tmp_path):
        pass


def test_first_signal_asks_and_second_ctrl_c_interrupts(tmp_path: Path) -> None:
    with StopRequest(tmp_path) as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest(tmp_path):
        signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_nothing_is_handled(tmp_path: Path) -> None:
    seen: list[bool] = []

    def use() -> None:
        with StopRequest(tmp_path) as stop:
            seen.append(stop.asked)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False]


def test_what_a_kill_has_left_of_a_sample_sheet_is_removed(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    left, sheet = samples / ".step-000000006.png.0123abcd.part", samples / "step-000000004.png"
    left.touch()
    sheet.touch()
    with locked(tmp_path):
        assert not left.exists() and sheet.exists()
