"""Many pages and bad ones, over real sockets: fair shares, bounded memory, and nobody is held up by anybody."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from magi.app import engine
from magi.app.protocol import MOST_RAW
from magi.app.server import MOST_PAGES
from runs.play_load import FAIR, FLAT_BYTES, crowd, page, play, served
from tests.app.fake_dreams import FakeDreams
from tests.app.test_guard import ATTACKS

FRAMES = 40
PATIENCE_S = 120.0  # on a machine that other tests share


def test_shares_are_fair_and_memory_is_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of ``runs/play_load.py``; no page is slow here, though the machine may be.

    As many frames as are more than ``FLAT_BYTES``, should the server keep them.
    """
    monkeypatch.setattr(engine, "GRACE_S", PATIENCE_S)
    monkeypatch.setattr(engine, "PROMPT_S", PATIENCE_S)
    report = crowd(players=20, frames=3 * FRAMES, fps=20)
    assert report["fewest_over_most"] >= FAIR and report["memory_grew_bytes"] < FLAT_BYTES
    assert report["left_behind"] == 0


async def _silent(one: ClientConnection) -> None:
    await asyncio.sleep(PATIENCE_S)


async def _flood(one: ClientConnection) -> None:
    while True:
        await one.send(json.dumps({"type": "ack", "frame": 0}))
        await asyncio.sleep(0)  # the other pages of this test share its loop


async def _huge(one: ClientConnection) -> None:
    await one.send("x" * 10_000_000)
    await one.recv()
    await asyncio.sleep(0.5)


async def _mid_frame(one: ClientConnection) -> None:
    async for message in one:
        if isinstance(message, bytes):
            one.transport.abort()
            return


async def _half(one: ClientConnection) -> None:
    one.transport.write(b"\x81\xfe\x00")  # a frame that never goes on
    await asyncio.sleep(PATIENCE_S)


async def _half_a_handshake(one: ClientConnection) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            half = stack.enter_context(socket.create_connection(one.remote_address[:2]))
            half.sendall(b"GET /play HTTP/1.1\r\nUpgrade: websocket\r\n")
        await asyncio.sleep(PATIENCE_S)


async def gets_its_frames(port: int, *beside: Any) -> None:
    """A page that behaves gets ``FRAMES`` while others do what they do."""
    tasks, counts = [asyncio.ensure_future(one) for one in beside], [0]
    tasks.append(asyncio.create_task(play(port, counts, 0)))
    async with asyncio.timeout(PATIENCE_S):
        while counts[0] < FRAMES:
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("behaviour", [_silent, _flood, _huge, _mid_frame, _half, _half_a_handshake])
def test_a_bad_page_holds_up_nobody(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def bad(port: int) -> None:
        while True:
            with contextlib.suppress(ConnectionClosed):
                async with page(port) as one:
                    await one.send(json.dumps({"type": "start", "start": 0}))
                    await behaviour(one)

    with caplog.at_level(logging.WARNING), served(FakeDreams(real=False), 4, 20) as (port, its):
        asyncio.run(gets_its_frames(port, *[bad(port) for _ in range(3)]))
    assert its.players == [] and not [record for record in caplog.records if record.exc_info]


class LargeDreams(FakeDreams):
    """The largest frames that are sent as they are."""

    def leg(self, states: Any, ask: Any) -> Iterator[Any]:
        for pictures_BHWC in super().leg(states, ask):
            yield pictures_BHWC.repeat(MOST_RAW // 64, 1).repeat(MOST_RAW // 64, 2)


def test_who_acknowledges_what_it_does_not_read_is_cut_off() -> None:
    """Or else frames pile up in the server for as long as the page likes."""

    async def deaf(port: int, its: Any) -> None:
        async with page(port, max_queue=1) as one, asyncio.timeout(PATIENCE_S):
            await one.send(json.dumps({"type": "start", "start": 0}))
            frame = 0
            with contextlib.suppress(ConnectionClosed):  # where it learns of it before the server has no player
                while its.players or not frame:
                    frame += 1
                    await one.send(json.dumps({"type": "ack", "frame": frame}))
                    await asyncio.sleep(0.005)  # fewer than what ends the connection by their number
            while its.players:
                await asyncio.sleep(0.01)
            one.transport.abort()

    with served(LargeDreams(real=False), 1, 0) as (port, its):
        asyncio.run(deaf(port, its))


def answer(port: int, request: bytes) -> int:
    """The status of an answer to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        one.sendall(request)
        return int(one.makefile("rb").readline().split()[1])


def test_attacks_over_real_sockets_are_refused_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    requests = [
        (f"GET {path} HTTP/1.1\r\n{more}{fields}Connection: close\r\n\r\n".encode(), code)
        for headers, code in ATTACKS
        for path, more in (("/", ""), ("/play", upgrade))
        for fields in ["".join(f"{name}: {value}\r\n" for name, value in headers.items())]
    ]
    own = "Host: 127.0.0.1\r\nConnection: close\r\n\r\n"
    for path in (
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/start/../../x.png",
        "/start/-1.png",
        "/play.js%00.css",
    ):
        requests.append((f"GET {path} HTTP/1.1\r\n{own}".encode(), 404))
    for method, code in (("POST", 405), ("DELETE", 405), ("NONSENSE", 405)):
        requests.append((f"{method} / HTTP/1.1\r\n{own}".encode(), code))
    requests += [(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400), (b"GET /\r\n\r\n", 400)]
    assert len(requests) >= 60
    with caplog.at_level(logging.WARNING), served(FakeDreams(real=False), 4, 20) as (port, its):
        assert [answer(port, request) for request, _ in requests] == [code for _, code in requests]
        asyncio.run(gets_its_frames(port))
    assert its.players == [] and not [record for record in caplog.records if record.exc_info]


def test_more_pages_than_there_is_room_for_are_turned_away() -> None:
    async def all_of(port: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            pages = [await stack.enter_async_context(page(port)) for _ in range(MOST_PAGES)]
            for one in pages:
                await one.recv()
            async with page(port) as late:
                with pytest.raises(ConnectionClosed) as refused:
                    await late.recv()
        assert refused.value.rcvd is not None and refused.value.rcvd.code == 1013

    with served(FakeDreams(real=False), 1, 10) as (port, _):
        asyncio.run(all_of(port))
