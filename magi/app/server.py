"""The page and its socket as an ASGI application (Starlette): moves bytes between pages and the engine.

No path, file or code comes from a page. A page that says what it may not is told why once, and cut off.
"""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from magi.app.dream import Dream, StartClip
from magi.app.engine import Engine
from magi.app.guard import HEADERS, LOOPBACK_HOSTS, Guard
from magi.app.player import Player
from magi.app.protocol import MOST_TEXT, RecordMessage, pack_recording, read_message
from magi.app.recording import recording_zip
from magi.data.worlds.contract import World
from magi.presets import SPEEDS
from magi.sampling.pipeline import MagiPipeline

FPS = 15.0
"""Of models whose data have no rate."""
MOST_PAGES = 64
MESSAGES_A_SECOND = 300
MOST_UNSENT = 32
"""Messages to a page that does not read them; frames are never that many."""
CLOSE_S = 1.0
SILENCE_S, PAUSED_SILENCE_S = 60.0, 1800.0
POLICY, TOO_BIG, UNSUPPORTED, TRY_LATER = 1008, 1009, 1003, 1013
_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("index.html", "text/html"),
    "/play.js": ("play.js", "text/javascript"),
    "/play.css": ("play.css", "text/css"),
}


def create_app(
    pipeline: MagiPipeline,
    *,
    world: World[Any] | None = None,
    starts: Sequence[StartClip] = (),
    players: int = 4,
    fps: float = 0.0,
    hosts: Collection[str] | None = LOOPBACK_HOSTS,
    token: str = "",
) -> Starlette:
    """An ASGI application in which ``pipeline`` dreams, warmed up; it can be mounted in another one.

    ``fps`` 0 is the rate of the world or of the model's data. ``hosts`` and ``token`` are those of ``Guard``. Raises
    ValueError for a model that cannot be played, or for more ``players`` than the GPU has memory for.
    """
    dream = Dream(pipeline, world, starts)
    dream.warm_up(players)
    rate = fps or (world.fps if world else 0) or pipeline.config.data.fps or FPS
    app = serve(Engine(dream, players, rate), hosts, token)
    app.state.bytes_a_player = dream.bytes_a_player
    return app


def serve(engine: Engine, hosts: Collection[str] | None = LOOPBACK_HOSTS, token: str = "") -> Starlette:
    """The application of an engine, which starts with the first page; ``app.state.engine`` stops it."""

    # Not the loop's own threads, which the end of a server waits for.
    encoder = ThreadPoolExecutor(1, "recordings")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        encoder.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(engine.stop)

    async def start_picture(request: Request) -> Response:
        starts = {str(number): start for number, start in enumerate(engine.dreams.starts)}
        start = starts.get(request.path_params["number"])  # as text: a number of 5,000 digits is an error to Python
        if start is None:
            return PlainTextResponse("no such start\n", 404, headers=HEADERS)
        file = io.BytesIO()
        Image.fromarray(start.video_THWC[-1]).save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png", headers=HEADERS)

    async def play(socket: WebSocket) -> None:
        await _Connection(engine, socket, encoder).run()

    routes = [Route(path, _file(*file)) for path, file in _FILES.items()]
    app = Starlette(
        routes=[*routes, Route("/start/{number}.png", start_picture), WebSocketRoute("/play", play)],
        middleware=[Middleware(Guard, hosts=hosts, token=token)],
        lifespan=lifespan,
    )
    app.state.engine = engine
    return app


def _file(name: str, media_type: str) -> Callable[[Request], Any]:
    body = (_PAGE / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(body, media_type=media_type, headers=HEADERS)

    return answer


class _Connection:
    """One open page."""

    def __init__(self, engine: Engine, socket: WebSocket, encoder: ThreadPoolExecutor) -> None:
        self.engine, self.socket, self.encoder = engine, socket, encoder
        self.outbox: asyncio.Queue[bytes | dict[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(message: bytes | dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is ending
                loop.call_soon_threadsafe(self.outbox.put_nowait, message)

        self.player = Player(send)
        self.window, self.count = 0.0, 0

    async def run(self) -> None:
        """Until either side ends it."""
        await self.socket.accept()
        if len(self.engine.players) >= MOST_PAGES:
            await self.socket.close(TRY_LATER, "too many players; try again later")
            return
        self.player.send(self._welcome())
        self.engine.start()
        self.engine.join(self.player)
        sender = asyncio.create_task(self._send())
        try:
            await self._receive()
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: closed by the sender's failure
            pass
        finally:
            sender.cancel()
            self.engine.leave(self.player)
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sender

    def _welcome(self) -> dict[str, Any]:
        dreams, settings = self.engine.dreams, self.engine.full_settings
        height, width = dreams.size
        return {
            "type": "welcome",
            "width": width,
            "height": height,
            "actions": list(dreams.actions),
            "classes": list(dreams.classes),
            "text": dreams.text,
            "starts": [{"name": one.name, "label": one.label, "prompt": one.prompt} for one in dreams.starts],
            "real": dreams.world is not None,
            "fps": self.engine.fps,
            "speed": self.engine.speed,
            "speeds": list(SPEEDS if settings.fast_steps else SPEEDS.keys() - {"fast"}),
            "temperature": settings.temperature,
            "guidance": settings.guidance,
        }

    async def _send(self) -> None:
        while True:
            message = await self.outbox.get()
            if isinstance(message, bytes):
                await self.socket.send_bytes(message)
            else:
                await self.socket.send_json(message)

    async def _receive(self) -> None:
        while True:
            silence = PAUSED_SILENCE_S if self.player.paused or self.player.place else SILENCE_S
            try:
                message = await asyncio.wait_for(self.socket.receive(), silence)
            except TimeoutError:
                await self.socket.close(POLICY, "nothing was heard of the page")
                return
            if message["type"] != "websocket.receive":
                return
            code, reason = self._refused(message.get("text"))
            if not code:
                code, reason = self._obey(message["text"])
            if code:
                with contextlib.suppress(TimeoutError):  # who does not read is not told
                    await asyncio.wait_for(self.socket.close(code, reason), CLOSE_S)
                return

    def _refused(self, text: str | None) -> tuple[int, str]:
        """A code and a reason for a message that is not even read; code 0 for the others."""
        if text is None:
            return UNSUPPORTED, "messages are text"
        if len(text.encode()) > MOST_TEXT:
            return TOO_BIG, f"messages have at most {MOST_TEXT} bytes"
        if self.outbox.qsize() > MOST_UNSENT:
            return POLICY, "what is sent is not read"
        now = time.monotonic()
        if now - self.window >= 1:
            self.window, self.count = now, 0
        self.count += 1
        return (POLICY, f"at most {MESSAGES_A_SECOND} messages a second") if self.count > MESSAGES_A_SECOND else (0, "")

    def _obey(self, text: str) -> tuple[int, str]:
        try:
            message = read_message(text)
        except ValidationError:
            return POLICY, "no message of the protocol"
        try:
            if isinstance(message, RecordMessage) and not message.on:
                self._end_recording()
            else:
                self.engine.tell(self.player, message)
        except ValueError as error:
            self.player.send({"type": "notice", "text": str(error)})
        return 0, ""

    def _end_recording(self) -> None:
        """Send it once it is encoded; the dream goes on meanwhile."""
        frames = self.engine.end_recording(self.player)
        if not frames:
            raise ValueError("nothing was recorded; start a dream first")
        fps, actions = self.engine.fps or FPS, bool(self.engine.dreams.actions)

        def send() -> None:
            try:
                self.player.send(pack_recording(recording_zip(frames, fps, actions)))
            except Exception as error:  # a video that cannot be written ends nothing but itself
                self.player.send({"type": "notice", "text": f"not recorded: {error}"})

        self.encoder.submit(send)
