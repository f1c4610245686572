"""``magi play``: every mistake is one line, and Ctrl-C ends it and leaves nothing behind."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

from magi.cli import play
from magi.cli.main import main
from magi.data.video_writer import write_mp4


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a refusal."""
    assert main(["play", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--players", "0"], "--players 0: expected at least 1"),
        (["--players", "65"], "--players 65: at most 64 pages are served"),
        (["--fps", "-1"], "--fps -1: expected 0 to 240"),
        (["--port", "70000"], "--port 70000: expected 0 to 65535"),
        (["--host", "0.0.0.0"], "everyone who reaches this machine could play"),
        (["--host", "0.0.0.0", "--token", "short"], "add --token with at least 16 characters"),
        (["--token", "with spaces and ; more"], "--token: expected letters"),
        (["--host", "203.0.113.9", "--token", "a-long-enough-token"], "--host 203.0.113.9 --port 8188: "),
        (["./nowhere", "--port", "0"], "./nowhere"),
        (["demo", "--world", "plattform", "--port", "0"], "no world 'plattform'; did you mean 'platform'?"),
        (
            ["demo", "--world", "platform", "--port", "0"],
            "--world platform has 6 actions and 64x64 pixels, this model 0",
        ),
        (["text", "--text-encoder", "./mine", "--port", "0"], "text reads no states of a frozen encoder; leave it out"),
        (["demo", "--context", "missing.mp4", "--port", "0"], "missing.mp4: no such video file (--context)"),
        (["demo", "--sampling.temperature", "-1", "--port", "0"], "temperature"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in refused(capsys, *arguments)


def test_a_port_in_use_names_a_free_one(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--port", taken)
    assert f"--port {taken}: in use; --port " in line
    free = int(line.split("--port ")[2].split()[0])
    with socket.socket() as other:
        other.bind(("127.0.0.1", free))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(play, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert "magi play needs uvicorn: pip install 'magi-video[app]'" in refused(capsys)


@pytest.mark.parametrize(("cores", "asked", "left"), [(2, None, 1), (1, None, 1), (16, None, 15), (2, "2", None)])
def test_a_core_is_left_to_the_page(
    cores: int, asked: str | None, left: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    used: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    play.leave_a_core()
    assert used == ([] if left is None else [left])


def test_a_dream_starts_from_a_video_and_its_actions(tmp_path: Path) -> None:
    from magi.presets import preset

    video_THWC = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    write_mp4(tmp_path / "mine.mp4", video_THWC, 15)
    np.save(tmp_path / "mine.actions.npy", np.arange(12) % 6)
    (start,) = play._starts([tmp_path / "mine.mp4"], preset("world-platform"))
    assert (start.name, start.video_THWC.shape, start.actions) == ("mine", (8, 64, 64, 3), (0, 1, 2, 3, 4, 5, 0, 1))
    (tmp_path / "mine.actions.npy").unlink()
    assert play._starts([tmp_path / "mine.mp4"], preset("world-platform"))[0].actions == (-1,) * 8


# The command with a frame that is never finished after the first one, and a recording that is never encoded.
BUSY = """
import sys, time
import magi.app.dream, magi.app.server

def leg(self, states, ask, leg=magi.app.dream.Dream.leg):
    for picture in leg(self, states, ask):
        yield picture
        if "warm" in done:
            time.sleep(3600)

def warm_up(self, players):
    done.add("warm")

done = set()
magi.app.dream.Dream.leg, magi.app.dream.Dream.warm_up = leg, warm_up
magi.app.server.recording_zip = lambda *recording: time.sleep(3600)
from magi.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [["-m", "magi"], ["-c", BUSY]])
def test_ctrl_c_ends_it_and_leaves_nothing_behind(how: list[str], tmp_path: Path) -> None:
    """Nor does it look for a browser where there is no display."""
    command = [sys.executable, *how, "play", "demo", "--players", "1", "--port", "0"]
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=kept | {"TMPDIR": str(tmp_path), "BROWSER": f"touch {tmp_path / 'opened'} %s"},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        guard = threading.Timer(120, process.kill)
        guard.start()
        address = next(line for line in iter(process.stdout.readline, "") if "play at" in line).split()[2]
        assert b"<canvas" in urllib.request.urlopen(address, timeout=30).read()
        with connect(f"ws{address.removeprefix('http')}play", origin=Origin(address.rstrip("/"))) as page:
            page.send(json.dumps({"type": "start", "start": 0}))
            while not isinstance(page.recv(60), bytes):
                pass
            for message in ({"type": "record", "on": True}, {"type": "record", "on": False}):
                page.send(json.dumps(message))
            page.send(json.dumps({"type": "ack", "frame": 1}))
            process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    page.recv(60)
        assert process.wait(60) == 0 and process.stderr.read() == ""
        guard.cancel()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012  # the service is ending
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))) == errno.ECONNREFUSED
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list(tmp_path.iterdir()) == []
