"""Many pages and bad ones, over real sockets: fair shares, bounded memory, and nobody is held up by anybody."""

import asyncio
import contextlib
import json
import logging
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from magi.app.engine import Engine
from magi.app.protocol import HEADER, MOST_TEXT
from magi.app.server import MOST_PAGES, serve
from tests.app.fake_dreams import FakeDreams

SECONDS = 2.0


@contextlib.contextmanager
def served(seats: int, fps: float) -> Iterator[tuple[int, Engine]]:
    """The port of a server in a thread, and its engine."""
    engine = Engine(FakeDreams(real=False), seats, fps)
    config = uvicorn.Config(serve(engine), log_level="warning", ws_max_size=4 * MOST_TEXT, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1], engine
        finally:
            server.should_exit = True
            thread.join()
            engine.stop()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def page(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}/play", origin=f"http://127.0.0.1:{port}", close_timeout=1)  # type: ignore[arg-type]


async def plays(port: int) -> int:
    """How many frames a page gets from its first one on."""
    count = 0
    async with page(port) as one:
        await one.send(json.dumps({"type": "start", "start": 0}))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                async for message in one:
                    if isinstance(message, bytes) and not count:
                        limit.reschedule(asyncio.get_running_loop().time() + SECONDS)
                    if isinstance(message, bytes):
                        count = HEADER.unpack_from(message)[1]
                        await one.send(json.dumps({"type": "ack", "frame": count}))
    return count


def test_shares_are_fair_and_memory_is_flat() -> None:
    async def many(port: int, pages: int) -> list[int]:
        return await asyncio.gather(*[plays(port) for _ in range(pages)])

    with served(seats=20, fps=10) as (port, engine):
        asyncio.run(many(port, 20))
        before = resident_bytes()
        counts = asyncio.run(many(port, 20))
        assert resident_bytes() - before < 20e6
        assert min(counts) >= 0.8 * max(counts) > 0
        assert engine.players == []


async def _silent(one: ClientConnection) -> None:
    await asyncio.sleep(SECONDS)


async def _flood(one: ClientConnection) -> None:
    while True:
        await one.send(json.dumps({"type": "ack", "frame": 0}))
        await asyncio.sleep(0)  # the other pages of this test share its loop


async def _huge(one: ClientConnection) -> None:
    await one.send("x" * 10_000_000)
    await one.recv()


async def _mid_frame(one: ClientConnection) -> None:
    async for message in one:
        if isinstance(message, bytes):
            one.transport.abort()
            return


async def _half(one: ClientConnection) -> None:
    one.transport.write(b"\x81\xfe\x00")  # a frame that never goes on
    await asyncio.sleep(SECONDS)


@pytest.mark.parametrize("behaviour", [_silent, _flood, _huge, _mid_frame, _half])
def test_a_bad_page_holds_up_nobody(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def bad(port: int) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with page(port) as one, asyncio.timeout(SECONDS):
                await one.send(json.dumps({"type": "start", "start": 0}))
                await behaviour(one)

    async def beside(port: int) -> int:
        results = await asyncio.gather(plays(port), *[bad(port) for _ in range(3)])
        return int(results[0])

    with caplog.at_level(logging.WARNING), served(seats=4, fps=20) as (port, engine):
        assert asyncio.run(beside(port)) > 0.5 * 20 * SECONDS
    assert engine.players == [] and not [record for record in caplog.records if record.exc_info]


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

    with served(seats=1, fps=10) as (port, _):
        asyncio.run(all_of(port))
