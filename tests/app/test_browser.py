"""The page in a real browser: what is pressed there moves what the oracle reads on its canvas.

Dreams are the exact simulator, so every pixel is known. `make test-browser` installs what this needs and fails without.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from magi.app.engine import Engine
from magi.app.server import serve
from runs.play_latency import pressed_keys
from tests.app.fake_dreams import WORLD, FakeDreams
from tests.app.training import MODEL_FRAMES, train_two_steps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WANTED = "MAGI_BROWSER" in os.environ  # set by make test-browser: what is missing is then an error
try:
    from playwright.sync_api import Browser, Page, sync_playwright
except ImportError:
    if WANTED:
        raise
    pytest.skip("needs playwright: make test-browser", allow_module_level=True)
if CHROMIUM is None and not WANTED:
    pytest.skip("needs chromium (on Debian: apt-get install chromium)", allow_module_level=True)

FPS = 30.0


@contextlib.contextmanager
def served(dreams: Any, seats: int = 4, fps: float = FPS) -> Iterator[str]:
    """The address of a server in a thread."""
    engine = Engine(dreams, seats, fps)
    config = uvicorn.Config(
        serve(engine), log_level="warning", ws_per_message_deflate=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
            engine.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(FakeDreams(seconds=0.005)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


@contextlib.contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A page that plays; afterwards nothing has been wrong in it."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(address)
    until(lambda: stats(page)["frame"] > 3)
    yield page
    context.close()
    assert wrong == []


def until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What ``true`` returns once it is true; the page's policy forbids playwright's own way, which evaluates text."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return value


def stats(page: Page) -> dict[str, Any]:
    return dict(page.evaluate("() => ({...window.magi})"))


def state(page: Page, canvas: str = "dream", before: Any = None) -> Any:
    """What the oracle reads in a canvas."""
    script = f"() => [...document.getElementById('{canvas}').getContext('2d').getImageData(0, 0, 64, 64).data]"
    return WORLD.read(np.array(page.evaluate(script), np.uint8).reshape(64, 64, 4)[..., :3], before)


def text(page: Page) -> str:
    return page.locator("#status").inner_text()


def test_arrows_run_and_walls_stop(page: Page) -> None:
    for key, wall in (("ArrowLeft", 0.0), ("ArrowRight", 64 - 5.0)):
        page.keyboard.down(key)
        until(lambda wall=wall: abs(state(page).x - wall) < 0.3)  # type: ignore[misc]
        page.keyboard.up(key)
    assert stats(page)["obeyed"] >= 3


def test_space_jumps_and_buttons_are_lit(page: Page) -> None:
    until(lambda: state(page).on_ground)
    ground = state(page).y
    button = page.get_by_role("button", name="jump")
    page.keyboard.down("Space")
    assert button.get_attribute("aria-pressed") == "true"
    until(lambda: state(page).y < ground - 5)
    page.keyboard.up("Space")
    assert button.get_attribute("aria-pressed") == "false"


def test_the_real_world_runs_beside_it(page: Page) -> None:
    page.keyboard.down("KeyD")
    until(lambda: state(page, "real").x > 58)
    page.keyboard.up("KeyD")
    assert stats(page)["error"] < 0.3 and "px" in page.locator("#error-text").inner_text()


def test_touch_buttons_play(browser: Browser, address: str) -> None:
    with opened(browser, address, has_touch=True, viewport={"width": 360, "height": 700}) as page:
        button = page.get_by_role("button", name="left", exact=True)
        button.dispatch_event("pointerdown", {"pointerId": 1})
        until(lambda: state(page).x < 0.3)
        button.dispatch_event("pointerup", {"pointerId": 1})
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= 360


def test_keys_are_released_when_the_window_is_left(page: Page) -> None:
    page.keyboard.down("ArrowLeft")
    page.evaluate("() => window.dispatchEvent(new Event('blur'))")
    assert page.locator("#pad [aria-pressed=true]").count() == 0


def test_a_hidden_page_stands_still(page: Page) -> None:
    page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    time.sleep(0.3)
    frame = stats(page)["frame"]
    time.sleep(0.4)
    assert stats(page)["frame"] == frame and text(page) == "paused"
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); }")
    until(lambda: stats(page)["frame"] > frame + 3)


def test_pause_reload_and_another_start(page: Page) -> None:
    page.get_by_role("button", name="pause").click()
    time.sleep(0.3)
    frame = stats(page)["frame"]
    time.sleep(0.3)
    assert stats(page)["frame"] == frame
    page.get_by_role("button", name="pause").click()
    until(lambda: stats(page)["frame"] > frame)
    page.reload()
    until(lambda: stats(page)["frame"] > 3)
    page.get_by_role("button", name="platform 4").click()
    first = FakeDreams().starts[3].state
    until(lambda: abs(state(page).x - first.x) < 0.3)


def test_players_see_their_own_worlds(browser: Browser, address: str, page: Page) -> None:
    with opened(browser, address) as other:
        page.keyboard.down("ArrowLeft")
        other.keyboard.down("ArrowRight")
        until(lambda: state(page).x < 1 and state(other).x > 58)


def test_those_without_a_seat_wait(browser: Browser) -> None:
    with served(FakeDreams(), seats=1) as address:
        with opened(browser, address) as first:
            waiting = browser.new_page()
            waiting.goto(address)
            until(lambda: "place 1" in text(waiting))
            first.close()
            until(lambda: stats(waiting)["frame"] > 3)
            waiting.close()


def test_a_recording_is_downloaded_and_trained_on(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="record").click()
    page.keyboard.down("ArrowRight")
    frame = stats(page)["frame"]
    until(lambda: stats(page)["frame"] > frame + MODEL_FRAMES + 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="record").click()
    train_two_steps(Path(download.value.path()), tmp_path)
    actions = np.load(tmp_path / "mine/1/dream.actions.npy")
    assert len(actions) > MODEL_FRAMES and (actions[-3:] == 2).all()


def test_settings_reach_the_sampler(browser: Browser) -> None:
    with served(dreams := FakeDreams()) as address:
        with opened(browser, address) as page:
            page.get_by_text("settings").click()
            page.locator("#temperature").fill("0.25")
            page.locator("#speed").select_option("fast")
            until(lambda: (dreams.settings.temperature, dreams.settings.steps) == (0.25, 3))


def test_a_model_without_actions_has_classes_to_choose_from(browser: Browser) -> None:
    dreams = FakeDreams(real=False)
    dreams.actions, dreams.classes = (), ("zero", "one")
    with served(dreams) as address:
        with opened(browser, address) as page:
            page.get_by_text("settings").click()
            page.get_by_label("class").select_option("one")
            assert page.locator("#real-figure").is_hidden() and page.locator("#pad button").count() == 0
            frame = stats(page)["frame"]
            until(lambda: stats(page)["frame"] > frame + 3)


def test_a_text_box_says_what_is_dreamed(browser: Browser) -> None:
    """By keyboard alone: written, not played; obeyed after Enter, and what cannot be read is said."""
    with served(FakeDreams(text=True, real=False)) as address:
        with opened(browser, address) as page:
            box = page.get_by_label("text")
            box.focus()
            page.keyboard.down("d")
            assert box.input_value() == "d" and page.locator("#pad [aria-pressed=true]").count() == 0
            page.keyboard.up("d")
            for written, wall in (("left", 0.0), ("right", 64 - 5.0)):
                box.fill("")
                page.keyboard.type(written)
                page.keyboard.press("Enter")
                until(lambda wall=wall: abs(state(page).x - wall) < 0.3)  # type: ignore[misc]
                assert page.get_by_text(f"dreaming: {written}").is_visible() and stats(page)["prompt"] == written
            page.keyboard.type(" and unreadable")
            page.keyboard.press("Enter")
            until(lambda: text(page) == "prompt: no action")
            assert stats(page)["prompt"] == "right" and box.input_value() == "right and unreadable"
            box.fill("left")
            page.get_by_role("button", name="dream it").click()
            until(lambda: stats(page)["prompt"] == "left" and text(page) == "playing")


def test_large_frames_come_as_jpeg(browser: Browser) -> None:
    class Large(FakeDreams):
        def leg(self, states: Any, ask: Any) -> Iterator[Any]:
            for pictures_BHWC in super().leg(states, ask):
                yield pictures_BHWC.repeat(4, 1).repeat(4, 2)

    dreams = Large(real=False)
    dreams.size = (256, 256)
    with served(dreams) as address:
        with opened(browser, address) as page:
            script = "() => [...document.getElementById('dream').getContext('2d').getImageData(0, 255, 1, 1).data]"
            assert np.abs(np.array(page.evaluate(script)) - [120, 130, 150, 255]).max() < 12  # the ground


def test_the_page_says_how_long_a_key_took(page: Page) -> None:
    """And where the time went: the parts are the whole, and none is negative."""
    report = pressed_keys(page, 12)
    found = until(lambda: stats(page) if stats(page).get("p95") else None)
    assert report["keys"] >= 12 and 0 < found["p50"] <= found["p95"] and found["fps"] > 1
    for whole, parts in zip(found["latencies"], found["parts"], strict=True):
        assert sum(parts.values()) == pytest.approx(whole) and min(parts.values()) > -0.1, parts
    assert report["parts_ms"].keys() == {"wait", "making", "network", "draw"}
    assert report["parts_ms"]["making"]["p50"] >= 5  # ms that a frame of these dreams takes


def test_all_of_it_by_keyboard_with_names_for_all_of_it(page: Page) -> None:
    page.locator("#stage").focus()
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
    assert {"pause", "record", "again", "left", "right", "jump"} <= reached
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('button, select, input, canvas, meter')].filter((one) =>"
        " !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_the_end_of_the_server_is_said(browser: Browser) -> None:
    with served(FakeDreams()) as address:
        page = browser.new_page()
        page.goto(address)
        until(lambda: stats(page)["frame"] > 3)
    until(lambda: "has ended" in text(page))
    page.close()
