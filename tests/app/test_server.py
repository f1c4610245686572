"""The protocol and the limits of the server, spoken to without a browser, on dreams that are the exact simulator."""

import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from magi.app.engine import Engine
from magi.app.player import IN_FLIGHT
from magi.app.protocol import HEADER, MAGIC, RAW, ZIP
from magi.app.server import MESSAGES_A_SECOND, serve
from magi.data.actions import read_track
from magi.data.decoding.frames import read_frames
from magi.data.decoding.probe import RejectedFile
from magi.data.decoding.sandbox import probe_safely
from tests.app.fake_dreams import WORLD, FakeDreams
from tests.app.training import MODEL_FRAMES, train_two_steps

HOST = "127.0.0.1:8000"
OWN = {"host": HOST, "origin": f"http://{HOST}"}
MOST_MESSAGES = 2000
SILENT = "nothing was heard of the page"
FIELDS = (
    "magic", "number", "seq", "clock", "took", "width", "height", "views", "format", "late", "error",
)  # fmt: skip


@contextmanager
def client_of(dreams: Any = None, seats: int = 4, fps: float = 0.0, **changes: Any) -> Iterator[TestClient]:
    app = serve(Engine(dreams or FakeDreams(), seats, fps), **changes)
    with TestClient(app, base_url=f"http://{HOST}") as client:
        yield client


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client


class Page:
    """A page that acknowledges what it is told to."""

    def __init__(self, socket: WebSocketTestSession) -> None:
        self.socket, self.said = socket, []

    def say(self, **message: Any) -> None:
        self.socket.send_text(json.dumps(message))

    def next(self, kind: str) -> Any:
        """The next message of a type ("frame": header fields and pixels as (views, H, W, 3)).

        Frames that come before it are acknowledged; a dream would end at two that are not.
        """
        for _ in range(MOST_MESSAGES):
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"], message.get("reason", ""))
            if "bytes" in message:
                facts = dict(zip(FIELDS, HEADER.unpack_from(message["bytes"]), strict=True))
                body = message["bytes"][HEADER.size :]
                if kind == "frame" and facts["format"] == RAW:
                    shape = (facts["views"], facts["height"], facts["width"], 4)
                    return facts, np.frombuffer(body, np.uint8).reshape(shape)[..., :3]
                if kind == "zip" and facts["format"] == ZIP:
                    return body
                self.say(type="ack", frame=facts["number"])
            elif json.loads(message["text"])["type"] == kind:
                return json.loads(message["text"])
        raise AssertionError(f"no {kind} in {MOST_MESSAGES} messages")

    def frame(self) -> Any:
        """The next frame, acknowledged."""
        facts, views = self.next("frame")
        self.say(type="ack", frame=facts["number"])
        return facts, views


@contextmanager
def page_of(client: TestClient, start: int | None = 0) -> Iterator[Page]:
    with client.websocket_connect("/play", headers=OWN) as socket:
        page = Page(socket)
        if start is not None:
            page.say(type="start", start=start)
        yield page


def test_the_page_is_told_what_it_plays(client: TestClient) -> None:
    with page_of(client) as page:
        welcome = page.next("welcome")
        assert welcome["actions"] == list(WORLD.actions) and welcome["real"] and len(welcome["starts"]) == 6
        assert (welcome["width"], welcome["height"], page.next("place")["place"]) == (64, 64, 0)


def test_frames_obey_the_keys_and_say_which(client: TestClient) -> None:
    with page_of(client) as page:
        page.say(type="keys", action=2, seq=7)
        while (found := page.frame())[0]["seq"] != 7:
            pass
        before = WORLD.read(found[1][0])
        facts, views = page.frame()
        assert facts["magic"] == MAGIC and views.shape == (2, 64, 64, 3) and facts["error"] < 0.1
        moved = WORLD.read(views[0]).x - before.x
        assert moved == pytest.approx(2, abs=0.2) or before.x > 56
        assert np.array_equal(views[0], views[1])


def test_a_page_that_shows_nothing_gets_two_frames_and_no_more() -> None:
    with client_of(dreams := FakeDreams()) as client, page_of(client) as page:
        numbers = [page.next("frame")[0]["number"] for _ in range(IN_FLIGHT)]
        time.sleep(0.2)
        assert numbers == [1, 2] and len(dreams.batches) == 2
        page.say(type="ack", frame=1)
        assert page.next("frame")[0]["number"] == 3


def test_players_who_wait_share_a_batch_and_see_their_own_worlds() -> None:
    with client_of(dreams := FakeDreams(), fps=60) as client, page_of(client) as left, page_of(client) as right:
        left.say(type="keys", action=1, seq=1)
        right.say(type="keys", action=2, seq=1)
        with ThreadPoolExecutor(2) as threads:  # pages do not wait for each other
            (_, lefts), (_, rights) = threads.map(lambda page: [page.frame() for _ in range(40)][-1], (left, right))
        assert WORLD.read(lefts[0]).x < WORLD.read(rights[0]).x - 10
        assert dreams.batches.count(2) > len(dreams.batches) / 2


def test_who_shows_nothing_holds_up_nobody() -> None:
    with client_of(fps=100) as client, page_of(client) as stuck, page_of(client) as quick:
        began = time.monotonic()
        numbers = [quick.frame()[0]["number"] for _ in range(40)]
        assert numbers == list(range(1, 41)) and time.monotonic() - began < 5
        assert stuck.next("frame")[0]["number"] == 1


def test_ticks_are_kept() -> None:
    with client_of(fps=40) as client, page_of(client) as page:
        page.frame()
        began = time.monotonic()
        for _ in range(20):
            page.frame()
        assert time.monotonic() - began > 0.45


def test_those_who_wait_for_a_seat_are_told_their_place() -> None:
    with client_of(seats=1) as client, page_of(client) as first:
        first.frame()
        with page_of(client) as second:
            assert second.next("place")["place"] == 1
            first.socket.close()
            assert second.next("place")["place"] == 0
            assert second.frame()[0]["number"] == 1


def test_pause_and_restart(client: TestClient) -> None:
    with page_of(client) as page:
        page.frame()
        page.say(type="pause", paused=True)
        page.say(type="record", on=False)
        page.next("notice")  # the pause has been read
        page.say(type="start", start=3)
        page.say(type="pause", paused=False)
        while True:
            _, views = page.frame()
            if abs(WORLD.read(views[0]).x - WORLD.read(FakeDreams().starts[3].video_THWC[-1]).x) < 0.5:
                break


def test_a_recording_is_what_training_reads_and_trains_on(client: TestClient, tmp_path: Path) -> None:
    with page_of(client) as page:
        page.frame()
        page.say(type="record", on=True)
        page.say(type="keys", action=4, seq=1)
        while page.frame()[0]["seq"] != 1:
            pass
        shown = [page.frame()[1][0] for _ in range(MODEL_FRAMES + 1)]
        page.say(type="record", on=False)
        (tmp_path / "dream.zip").write_bytes(page.next("zip"))
    zipfile.ZipFile(tmp_path / "dream.zip").extractall(tmp_path)
    probe = probe_safely(tmp_path / "dream.mp4")
    assert not isinstance(probe, RejectedFile)
    rows_TA = read_track(tmp_path / "dream.actions.npy", len(WORLD.actions), probe.frames)
    assert np.isnan(rows_TA[0]).all() and rows_TA[-1].argmax() == 4
    video_THWC = read_frames(tmp_path / "dream.mp4", range(probe.frames), probe)
    assert min(np.abs(frame.astype(float) - shown[-1]).mean() for frame in video_THWC) < 3
    train_two_steps(tmp_path / "dream.zip", tmp_path / "work")


def test_settings_change_for_one_who_plays_alone(client: TestClient) -> None:
    with page_of(client) as page:
        page.say(type="settings", temperature=0.25, fps=30.0)
        page.say(type="settings", guidance=2.0, speed="fast")
        page.frame()
        with page_of(client) as other:
            other.say(type="settings", fps=1.0)
            assert "others are playing" in other.next("notice")["text"]
            engine = client.app.state.engine  # type: ignore[attr-defined]
            assert (engine.fps, engine.dreams.settings.temperature, engine.dreams.settings.steps) == (30, 0.25, 3)


def test_a_frame_that_fails_ends_its_dream_and_not_the_server() -> None:
    with client_of(dreams := FakeDreams()) as client, page_of(client) as page:
        page.frame()
        dreams.fails = True
        page.say(type="ack", frame=9)
        assert "a planted failure" in page.next("error")["text"]
        dreams.fails = False
        page.say(type="start", start=1)
        assert page.frame()[0]["number"] > 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 1008),
        ("nonsense", 1008),
        ("[1, 2]", 1008),
        ("null", 1008),
        ('{"type": "start"}', 1008),
        ('{"type": "start", "start": "0"}', 1008),
        ('{"type": "start", "start": -1}', 1008),
        ('{"type": "start", "start": 1e300}', 1008),
        ('{"type": "start", "start": 0, "seed": -1}', 1008),
        ('{"type": "start", "start": 0, "path": "/etc/passwd"}', 1008),
        ('{"type": "keys", "action": 0.5, "seq": 1}', 1008),
        ('{"type": "keys", "action": true, "seq": 1}', 1008),
        ('{"type": "keys", "action": NaN, "seq": 1}', 1008),
        ('{"type": "keys", "action": 1, "seq": 4294967296}', 1008),
        ('{"type": "ack", "frame": -1}', 1008),
        ('{"type": "ack", "frame": null}', 1008),
        ('{"type": "pause", "paused": "yes"}', 1008),
        ('{"type": "settings", "temperature": Infinity}', 1008),
        ('{"type": "settings", "temperature": 1e9}', 1008),
        ('{"type": "settings", "speed": "../fast"}', 1008),
        ('{"type": "settings", "__class__": 1}', 1008),
        ('{"type": "label", "label": "7"}', 1008),
        ('{"type": "prompt"}', 1008),
        ('{"type": "prompt", "text": 7}', 1008),
        ('{"type": "prompt", "text": ["left"]}', 1008),
        ('{"type": "prompt", "text": "' + "y" * 1001 + '"}', 1008),
        ('{"type": "prompt", "text": "' + "é" * 2100 + '"}', 1009),
        ('{"type": "record", "on": 1}', 1008),
        ('{"type": "__init__"}', 1008),
        ('{"type": ["start"]}', 1008),
        ('{"type": "start", "start": 0' + "}" * 50, 1008),
        ("[" * 2000, 1008),
        ('{"a":' * 600 + "1" + "}" * 600, 1008),
        ('{"type": "ack", "frame": ' + "9" * 4000 + "}", 1008),
        ('{"type": "ack", "frame": 1, "x": "' + "y" * 5000 + '"}', 1009),
        ("é" * 3000, 1009),
        (b"\x00\x01", 1003),
    ],
)
def test_what_is_no_message_ends_the_connection(client: TestClient, text: str | bytes, code: int) -> None:
    with page_of(client, start=None) as page:
        if isinstance(text, bytes):
            page.socket.send_bytes(text)
        else:
            page.socket.send_text(text)
        with pytest.raises(WebSocketDisconnect) as refused:
            page.next("frame")
        assert refused.value.code == code and refused.value.reason != SILENT


@pytest.mark.parametrize(
    "message",
    [
        {"type": "start", "start": 6},
        {"type": "keys", "action": 6, "seq": 1},
        {"type": "label", "label": 0},
        {"type": "prompt", "text": "left"},
        {"type": "record", "on": False},
    ],
)
def test_what_the_model_has_not_is_said(client: TestClient, message: dict[str, Any]) -> None:
    with page_of(client, start=None) as page:
        page.say(**message)
        assert page.next("notice")["text"]
        page.say(type="start", start=0)
        page.frame()


def test_a_prompt_is_obeyed_by_the_next_frame_which_says_so() -> None:
    """A frame is obeyed by all after the message that names its prompt, and by none before."""
    with client_of(FakeDreams(text=True, real=False)) as client, page_of(client) as page:
        assert page.next("welcome")["text"]
        page.say(type="prompt", text="right")
        assert page.next("prompt")["text"] == "right"
        first, second = (WORLD.read(page.frame()[1][0]) for _ in range(2))
        assert second.x - first.x == pytest.approx(2, abs=0.3) or first.x > 56
        page.say(type="prompt", text="unreadable")
        assert page.next("notice")["text"] == "prompt: no action"
        page.say(type="start", start=0)  # forgets its prompt
        page.say(type="prompt", text="right")
        assert page.next("prompt")["text"] == "right"


def test_a_flood_ends_the_connection(client: TestClient) -> None:
    with page_of(client, start=None) as page:
        for _ in range(MESSAGES_A_SECOND * 3):
            page.say(type="ack", frame=0)
        with pytest.raises(WebSocketDisconnect) as refused:
            page.next("frame")
        assert refused.value.code == 1008 and "300 messages a second" in refused.value.reason
    with page_of(client) as page:
        page.frame()


def test_it_can_be_mounted_in_another_application() -> None:
    app = Starlette(routes=[Mount("/dream", serve(Engine(FakeDreams(), 4, 0)))])
    with TestClient(app, base_url=f"http://{HOST}") as client:
        assert "canvas" in client.get("/dream/").text and client.get("/dream/start/0.png").status_code == 200
        with client.websocket_connect("/dream/play", headers=OWN) as socket:
            page = Page(socket)
            page.say(type="start", start=0)
            page.frame()
