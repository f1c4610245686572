"""How long a key takes to its pixels: ``magi play`` in a real browser, as the page itself measures it.

    python runs/play_latency.py [--model NAME] [--keys N] [--fps N] [--out FILE]

Presses keys at random moments, once with the machine to itself and once with a core kept busy, and times what making a
frame is made of, in this process. Writes results/play.json, of which ``runs/tables.py play`` makes the table of
docs/play.md. It needs chromium and the extra ``browser`` (``make test-browser`` installs it), and a machine that does
nothing else. What the page calls ``wait`` holds the way of the key to the server; the clocks of page and server are
put together by the fastest frame, so ``network`` is the time above that of the fastest.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from magi import MagiPipeline
from magi.app.dream import Dream
from magi.app.player import FrameFacts, Player
from magi.bench.machine import machine_facts
from magi.cli.play import leave_a_core
from magi.data.worlds.contract import World
from magi.data.worlds.worlds import WORLDS
from magi.files import write_text
from magi.sampling.denoise import Denoiser
from magi.sampling.history import History

ROOT = Path(__file__).parents[1]
FORMAT = 1
WANTED_P95_MS = {0: 100.0, 1: 150.0}
"""By the number of cores that something else keeps busy."""
KEYS = ("ArrowLeft", "ArrowRight", "Space")
HELD_S = 0.1, 0.3
PATIENCE_S = 60.0


def pressed_keys(page: Any, changes: int, seed: int = 0) -> dict[str, Any]:
    """Press and release keys of an open ``page`` (playwright's) at random moments, until ``changes`` are on the screen.

    The page remembers the newest 200. Returns ``latency_ms``, each of its parts and the frames a second.
    """
    rng, before, began = np.random.default_rng(seed), _stats(page), time.monotonic()
    while (seq := page.evaluate("() => window.magi.seq")) - before["seq"] < changes:
        key = KEYS[seq // 2 % len(KEYS)]
        for act in (page.keyboard.down, page.keyboard.up):
            act(key)
            time.sleep(rng.uniform(*HELD_S))
    frames_a_second = (_stats(page)["frame"] - before["frame"]) / (time.monotonic() - began)
    deadline = time.monotonic() + PATIENCE_S
    while (found := _stats(page))["obeyed"] < found["seq"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the page shows {found['obeyed']} of {found['seq']} changes of keys: {found}")
        time.sleep(0.05)
    parts = {part: percentiles([one[part] for one in found["parts"]]) for part in found["parts"][0]}
    return {
        "keys": len(found["latencies"]), "frames_a_second": frames_a_second,
        "latency_ms": percentiles(found["latencies"]), "parts_ms": parts,
    }  # fmt: skip


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """What half, 95 and 99 % of ``values`` are within."""
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


def _stats(page: Any) -> dict[str, Any]:
    return dict(page.evaluate("() => ({...window.magi})"))


def frame_parts(pipeline: MagiPipeline, world: World[Any] | None, frames: int) -> dict[str, float]:
    """Mean milliseconds of a frame in each part of making it, of one player without a page; on a CPU."""
    dream = Dream(pipeline, world)
    dream.warm_up(1)
    player, state = Player(lambda message: None), dream.begin(0, 0)
    player.begin(state, dream.starts[0])
    seconds, count, action = {"beside": 0.0}, 0, 0
    with ExitStack() as stack:
        for part, owner, name in (
            ("observation", History, "observe"), ("passes", History, "predict"), ("head", Denoiser, "__call__"),
            ("decode", type(pipeline.vae), "decode"),
        ):  # fmt: skip
            stack.enter_context(_timed(owner, name, part, seconds))
        while count < frames:
            action = (action + 1) % max(1, len(dream.actions))  # another one in each leg
            for pictures_BHWC in dream.leg([state], lambda held=action: [held]):  # type: ignore[misc]
                began = time.perf_counter()
                player.deliver(pictures_BHWC[0], FrameFacts(action, 0, time.monotonic(), False), world)
                seconds["beside"] += time.perf_counter() - began
                count += 1
    return {part: 1e3 * spent / count for part, spent in seconds.items()}


@contextmanager
def _timed(owner: type, name: str, part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time in a method to ``seconds[part]``."""
    original = getattr(owner, name)
    seconds[part] = 0.0

    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            seconds[part] += time.perf_counter() - began

    with patch.object(owner, name, measured):
        yield


@contextmanager
def served(model: str, fps: float) -> Iterator[str]:
    """The address of ``magi play``."""
    command = [sys.executable, "-m", "magi", "play", model, "--players", "1", "--fps", str(fps), "--port", "0"]
    with subprocess.Popen([*command, "--no-open-page"], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        address = next((line.split()[2] for line in process.stdout if line.startswith("play at ")), None)
        if address is None:
            raise RuntimeError("magi play did not start")
        try:
            yield address
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """Processes that do nothing but work."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(model: str, keys: int, fps: float) -> dict[str, Any]:
    """The whole report."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise RuntimeError("needs chromium; on Debian: apt-get install chromium")
    leave_a_core()
    facts, world = machine_facts(torch.device("cpu")), WORLDS.get(model)
    parts = frame_parts(MagiPipeline.from_pretrained(model), world, 120)
    cases = []
    with sync_playwright() as playwright, served(model, fps) as address:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        for cores, wanted in WANTED_P95_MS.items():
            with busy(cores):
                page = browser.new_page()
                page.goto(address)
                time.sleep(3.0)
                case = pressed_keys(page, keys)
                page.close()
            cases.append({"busy_cores": cores, "wanted_p95_ms": wanted, **case})
        browser.close()
    return {
        "format": FORMAT, "machine": facts, "model": model, "fps": fps,
        "frame_parts_ms": parts, "cases": cases,
    }  # fmt: skip


def main() -> None:
    """Measure, say what was found, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="platform")
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/play.json")
    options = parser.parse_args()
    report = measure(options.model, options.keys, options.fps)
    for case in report["cases"]:
        found = ", ".join(f"{name} {value:.0f} ms" for name, value in case["latency_ms"].items())
        print(f"{case['busy_cores']} cores busy: {found}, {case['frames_a_second']:.1f} frames a second")
    write_text(options.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
