"""Many players at once on dreams that cost nothing: what the server itself takes, and whether its shares are fair.

    python runs/play_load.py [--players N] [--frames N] [--fps N] [--out FILE]

Real sockets on this machine, the pages in this process too. Writes results/play_load.json: the frames of the player
with the fewest over those of the one with the most, and by how much the memory of the process has grown since the
first tenth of the time.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import uvicorn
from websockets.asyncio.client import connect
from websockets.typing import Origin

from magi.app.dream import Ask, StartClip
from magi.app.engine import Dreams, Engine
from magi.app.protocol import HEADER, MOST_TEXT
from magi.app.server import serve
from magi.bench.machine import machine_facts
from magi.config import SamplingConfig
from magi.files import write_text

ROOT = Path(__file__).parents[1]
FORMAT = 1
PIXELS, LEG_FRAMES = 64, 8
FAIR, FLAT_BYTES = 0.8, 20e6
SAMPLES, POLL_S = 10, 0.05


class Noise:
    """Dreams of random pixels, at no cost."""

    world, text = None, False
    actions, classes, size = ("left", "right"), (), (PIXELS, PIXELS)

    def __init__(self) -> None:
        self.settings = SamplingConfig(longer="window")
        video_THWC = np.random.default_rng(0).integers(0, 256, (LEG_FRAMES, PIXELS, PIXELS, 3), np.uint8)
        self.starts: Sequence[StartClip] = [StartClip("noise", video_THWC, (-1,) * LEG_FRAMES)]

    def begin(self, start: int, seed: int) -> Any:
        """A dream has no state."""
        return SimpleNamespace(label=None, prompts=("",), refusal="")

    def leg(self, states: Sequence[Any], ask: Ask) -> Iterator[Any]:
        """The frames of the start again."""
        for picture_HWC in self.starts[0].video_THWC:
            ask()
            yield np.broadcast_to(picture_HWC, (len(states), *picture_HWC.shape))


@contextlib.contextmanager
def served(dreams: Dreams, seats: int, fps: float) -> Iterator[tuple[int, Engine]]:
    """The port of a server in a thread, and its engine."""
    engine = Engine(dreams, seats, fps)
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


def page(port: int, **options: Any) -> connect:
    """A page that is not there yet; ``options`` are those of ``websockets.connect``."""
    address = f"127.0.0.1:{port}"
    return connect(f"ws://{address}/play", origin=Origin(f"http://{address}"), close_timeout=1, **options)


async def play(port: int, counts: list[int], number: int) -> None:
    """A page that acknowledges each frame at once, and counts them in ``counts[number]``."""
    async with page(port) as one:
        await one.send(json.dumps({"type": "start", "start": 0}))
        async for message in one:
            if isinstance(message, bytes):
                counts[number] = HEADER.unpack_from(message)[1]
                await one.send(json.dumps({"type": "ack", "frame": counts[number]}))


def crowd(players: int, frames: int, fps: float) -> dict[str, Any]:
    """``players`` who play at once, all seated, until one of them has had ``frames`` since the last of them began."""
    counts, memory = [0] * players, []

    async def everyone(port: int) -> list[int]:
        pages = [asyncio.create_task(play(port, counts, number)) for number in range(players)]
        while not all(counts):
            await asyncio.sleep(POLL_S)
        before = counts.copy()
        while (most := max(now - then for now, then in zip(counts, before, strict=True))) < frames:
            if any(page.done() for page in pages):
                raise RuntimeError(f"a page of {players} has ended: {[page for page in pages if page.done()]}")
            if most >= len(memory) * frames / SAMPLES:
                memory.append(resident_bytes())
            await asyncio.sleep(POLL_S)
        memory.append(resident_bytes())
        for one in pages:
            one.cancel()
        await asyncio.wait(pages)
        return [now - then for now, then in zip(counts, before, strict=True)]

    began = time.monotonic()
    with served(Noise(), players, fps) as (port, engine):
        shares = asyncio.run(everyone(port))
    return {
        "players": players, "fps": fps, "took_s": time.monotonic() - began, "frames": shares,
        "fewest_over_most": min(shares) / max(shares), "memory_bytes": memory,
        "memory_grew_bytes": memory[-1] - memory[1], "left_behind": len(engine.players),
    }  # fmt: skip


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Let them play, write what was found, and exit with 1 if it was not fair or not flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--players", type=int, default=50)
    parser.add_argument("--frames", type=int, default=6000, help="ten minutes at ten a second")
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "results/play_load.json")
    options = parser.parse_args()
    report = {
        "format": FORMAT, "machine": machine_facts(torch.device("cpu")),
        **crowd(options.players, options.frames, options.fps),
    }  # fmt: skip
    write_text(options.out, json.dumps(report) + "\n")
    print(
        f"{options.players} players in {report['took_s']:.0f} s: fewest over most frames "
        f"{report['fewest_over_most']:.2f}, memory grew by {report['memory_grew_bytes'] / 1e6:.1f} MB"
    )
    if report["fewest_over_most"] < FAIR or report["memory_grew_bytes"] > FLAT_BYTES or report["left_behind"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
