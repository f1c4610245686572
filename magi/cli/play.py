"""``magi play``: a page in the browser where a model dreams under your keys."""

import contextlib
import errno
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from magi.cli.options import Device, SamplingChanges, Speed, check_device, parse
from magi.cli.sample import read_context
from magi.files import SHIPPED
from magi.presets import at_speed

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from magi.app.dream import StartClip
    from magi.config import Config

# The game once it is there; a package without it plays the digits.
SHIPPED_GAME = "platform" if SHIPPED["platform"].is_dir() else "demo"
PORT, PORTS_TRIED = 8188, 100
LEAST_TOKEN = 16
LOOPBACK, ANY_ADDRESS = ("127.0.0.1", "localhost", "::1"), ("0.0.0.0", "::")


@dataclass(frozen=True)
class PlayOptions:
    """Play a model in the browser, on this machine: its frames follow the keys, without end.

    A model with actions answers to them; another one goes on by itself, in the class or under the text of your choice.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = SHIPPED_GAME
    """run directory, exported folder, hub id, or a shipped model: 'platform', 'demo', 'text'"""
    world: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """built-in world that the model was trained on: its exact simulator runs beside the dream under the same keys;
    known of a shipped model"""
    context: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """videos to start from; by default those of the world, or what the model makes from nothing"""
    players: int = 4
    """who play at once, each a dream of its own in one batch; others wait"""
    fps: float = 0.0
    """frames a second; 0 is the rate of the world or of the model's data, else 15"""
    port: int = PORT
    """of the page"""
    host: str = "127.0.0.1"
    """address to listen on; one that others can reach needs a token"""
    token: str = ""
    """what a visitor must know, in the address that is printed"""
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """further names that the page is reached by, as behind a reverse proxy"""
    text_encoder: str = ""
    """folder or hub id of a frozen text encoder, where that is not the model's own"""
    speed: Speed = "full"
    """full is the model's config; fast has the fewest denoising steps that score as well (magi tune-steps)"""
    sampling: SamplingChanges = field(default_factory=lambda: SamplingChanges({}))
    device: Device = "auto"
    """auto takes a GPU where there is one"""
    open_page: bool = True
    """open the page where there is a display"""


def play(argv: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    options = parse(PlayOptions, "play", argv)
    _check(options)
    listening = _listen(options.host, options.port)
    with listening:
        _serve(options, listening)


def _check(options: PlayOptions) -> None:
    """Refuse what no model could do, before one is loaded."""
    if options.players < 1:
        raise ValueError(f"--players {options.players}: expected at least 1")
    if not 0 <= options.fps <= 240:
        raise ValueError(f"--fps {options.fps:g}: expected 0 to 240")
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port {options.port}: expected 0 to 65535")
    if options.host not in LOOPBACK and len(options.token) < LEAST_TOKEN:
        raise ValueError(
            f"--host {options.host}: everyone who reaches this machine could play and use its processors; add --token "
            f"with at least {LEAST_TOKEN} characters, or put a reverse proxy before 127.0.0.1 (docs/play.md)"
        )
    if not options.token.isascii() or any(character in options.token for character in ' ;,&#+%"\\'):
        raise ValueError("--token: expected letters, digits and - _ . alone, so that it fits an address and a cookie")
    missing = [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        raise ValueError(f"magi play needs {', '.join(missing)}: pip install 'magi-video[app]'")
    from magi.app.server import MOST_PAGES

    if options.players > MOST_PAGES:
        raise ValueError(f"--players {options.players}: at most {MOST_PAGES} pages are served")
    check_device(options.device)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; ValueError with the next free port where this one is in use."""
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ValueError(f"--host {host} --port {port}: {error.strerror}") from None
    for other in range(port + 1, min(port + PORTS_TRIED, 65536)):
        try:
            _bound(host, other).close()
        except OSError:
            continue
        raise ValueError(f"--port {port}: in use; --port {other} is free")
    raise ValueError(f"--port {port}: in use, as are the ports after it; --port 0 takes any free one")


def _bound(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # so that the address can be opened from the moment it is printed
    except OSError:
        listening.close()
        raise
    return listening


def _serve(options: PlayOptions, listening: socket.socket) -> None:
    import uvicorn

    from magi.app.protocol import MOST_TEXT

    app = _app(options)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    page = f"{address}?token={options.token}" if options.token else address
    config = uvicorn.Config(
        app, log_level="warning", ws_max_size=4 * MOST_TEXT, timeout_graceful_shutdown=1, server_header=False,
        proxy_headers=False, ws_per_message_deflate=False,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended by then, and raises it again
        print(f"{options.players} at once, {app.state.bytes_a_player / 1e6:.1f} MB of history each; others wait")
        print(f"play at {page} (Ctrl-C ends it)", flush=True)
        if options.open_page and (
            sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        ):
            webbrowser.open(page)
        uvicorn.Server(config).run(sockets=[listening])
    # NOTE: Python's own end would wait for a recording that is being encoded, and is not safe beside a thread that is
    # in the middle of a frame. All sockets are closed and no file is open.
    sys.stdout.flush()
    os._exit(0)


def _app(options: PlayOptions) -> "Starlette":
    """The application, its model loaded and warmed up."""
    from magi.app.dream import captioned_starts, digit_starts, keep_frames
    from magi.app.guard import LOOPBACK_HOSTS
    from magi.app.server import create_app
    from magi.data.worlds.worlds import WORLDS, find_world
    from magi.devices import resolve_device
    from magi.sampling.pipeline import MagiPipeline

    leave_a_core()
    shipped = WORLDS.get(options.model) if options.model in SHIPPED else None
    world = find_world(options.world) if options.world else shipped
    pipeline = MagiPipeline.from_pretrained(
        options.model, resolve_device(options.device), text_encoder=options.text_encoder
    )
    settings = at_speed(pipeline.config.sampling, options.speed).changed(**options.sampling.fields)
    pipeline.config = pipeline.config.model_copy(update={"sampling": settings})
    starts = _starts(options.context, pipeline.config)
    built_in = {"demo": digit_starts, "text": captioned_starts}
    if options.model in built_in and not starts:
        keep = keep_frames(settings, pipeline.config.model.frames)
        starts = built_in[options.model](keep, pipeline.config.data.height)
    print("warming up", flush=True)
    return create_app(
        pipeline,
        world=world,
        starts=starts,
        players=options.players,
        fps=options.fps,
        hosts=None if options.host in ANY_ADDRESS else (*LOOPBACK_HOSTS, options.host, *options.allow_host),
        token=options.token,
    )


def leave_a_core() -> None:
    """One for the server and for the browser of who plays on this machine: a frame waits for its slowest thread.

    ``OMP_NUM_THREADS`` asks for another number.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def _starts(files: Sequence[Path], config: "Config") -> "list[StartClip]":
    """The first frames of each of ``files``, with their actions where a track lies beside the video."""
    import numpy as np

    from magi.app.dream import NO_ACTION, StartClip, keep_frames
    from magi.data.actions import read_track, track_path

    keep = keep_frames(config.sampling, config.model.frames)
    starts = []
    for path in files:
        video_THWC = read_context(path, keep, 1, config.data).video_THWC
        track, actions = track_path(path) if config.model.actions else None, [NO_ACTION] * keep
        if track is not None:
            rows_TA = read_track(track, config.model.actions, keep)[:keep]
            actions = [NO_ACTION if np.isnan(row_A).any() else int(row_A.argmax()) for row_A in rows_TA]
        starts.append(StartClip(path.stem, video_THWC, tuple(actions)))
    return starts
