"""Who may talk to the server: the page that it serves itself, under a name that it knows, and nobody else.

A browser lets any page open a WebSocket to this machine, and a name of an attacker's can be made to point here. So
``Host`` and ``Origin`` are read raw, before anything is routed, on HTTP and WebSocket alike (RFC 6455, section 10.2).
"""

import hmac
import re
from collections.abc import Collection
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "magi_play"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}))(?::\d{1,5})?")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what does not come from the server's own page; ``hosts`` are the names that lead here, None for any.

    With a ``token``, a visitor shows it once as ``/?token=``, and from then on by a cookie.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None = LOOPBACK_HOSTS, token: str = "") -> None:
        self.app, self.token = app, token
        self.hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] in ("http", "websocket"):
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        match = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if match is None:
            return _answer(400, "one valid Host header is needed")
        if self.hosts is not None and match[1] not in self.hosts:
            return _answer(421, "not a name of this server")
        own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        if [origin for origin in origins if origin.lower() not in own] or len(origins) > 1:
            return _answer(403, "another page's request")
        if scope["type"] == "websocket" and not origins:
            return _answer(403, "an Origin header is needed")
        return self._without_token(scope) if self.token else None

    def _without_token(self, scope: Scope) -> Response | None:
        cookies = [cookie.partition("=") for value in _values(scope, b"cookie") for cookie in value.split("; ")]
        if any(name == COOKIE and self._is_token(value) for name, _, value in cookies):
            return None
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["type"] == "http" and scope["path"].endswith("/") and len(shown) == 1 and self._is_token(shown[0]):
            answer = RedirectResponse(".", 303, headers=HEADERS)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path=scope["path"])
            return answer
        return _answer(401, "open the address that was printed with its token")

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("latin-1", "replace"), self.token.encode("latin-1", "replace"))


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _answer(code: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", code, headers=HEADERS)
