"""Foreign pages, rebound names and visitors without the token are refused, on HTTP and WebSocket alike."""

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from magi.app.engine import Engine
from magi.app.guard import COOKIE
from magi.app.server import serve
from tests.app.fake_dreams import FakeDreams

HOST = "127.0.0.1:8000"
OWN = {"host": HOST, "origin": f"http://{HOST}"}
TOKEN = "correct-horse-battery"


def client(**changes: object) -> TestClient:
    app = serve(Engine(FakeDreams(), 4, 0), **changes)  # type: ignore[arg-type]
    return TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)


ATTACKS: list[tuple[dict[str, str], int]] = [
    ({"host": "evil.example"}, 421),
    ({"host": "evil.example:8000"}, 421),
    ({"host": "127.0.0.1.evil.example:8000"}, 421),
    ({"host": "localhost.evil.example"}, 421),
    ({"host": "127.0.0.2:8000"}, 421),
    ({"host": "0.0.0.0:8000"}, 421),
    ({"host": "2130706433:8000"}, 421),
    ({"host": "[::2]:8000"}, 421),
    ({"host": ""}, 400),
    ({"host": " "}, 400),
    ({"host": "127.0.0.1:8000/../x"}, 400),
    ({"host": "127.0.0.1:8000?x"}, 400),
    ({"host": "127.0.0.1:8000#x"}, 400),
    ({"host": "user@127.0.0.1:8000"}, 400),
    ({"host": "127.0.0.1:port"}, 400),
    ({"host": "127.0.0.1:8000, evil.example"}, 400),
    ({"host": "[::1"}, 400),
    ({"host": "a" * 300}, 400),
    ({"host": HOST, "origin": "https://evil.example"}, 403),
    ({"host": HOST, "origin": "http://127.0.0.1:8001"}, 403),
    ({"host": HOST, "origin": "http://localhost:8000"}, 403),
    ({"host": HOST, "origin": "http://127.0.0.1"}, 403),
    ({"host": HOST, "origin": "null"}, 403),
    ({"host": HOST, "origin": "file://"}, 403),
    ({"host": HOST, "origin": "chrome-extension://abc"}, 403),
    ({"host": HOST, "origin": f"http://{HOST}.evil.example"}, 403),
    ({"host": HOST, "origin": f"http://{HOST}@evil.example"}, 403),
    ({"host": HOST, "origin": f"http://{HOST}, https://evil.example"}, 403),
]


@pytest.mark.parametrize(("headers", "code"), ATTACKS)
@pytest.mark.parametrize("socket", [False, True])
def test_attacks_are_refused(headers: dict[str, str], code: int, socket: bool) -> None:
    if not socket:
        assert client().get("/", headers=headers).status_code == code
        return
    with pytest.raises(WebSocketDenialResponse) as refused:
        with client().websocket_connect("/play", headers=OWN | headers):
            pass
    assert refused.value.status_code == code


def test_a_socket_needs_an_origin() -> None:
    with pytest.raises(WebSocketDenialResponse) as refused, client().websocket_connect("/play", headers={"host": HOST}):
        pass
    assert refused.value.status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_own_names_are_served(host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    answer = client().get("/", headers=headers)
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in answer.headers)
    with client().websocket_connect("/play", headers=headers):
        pass


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/../etc/passwd", 404), ("/%2e%2e/%2e%2e/etc/passwd", 404), ("/..%2fserver.py", 404),
        ("/page/index.html", 404), ("/start/../../x.png", 404), ("/start/99.png", 404), ("/start/-1.png", 404),
        ("/start/1e9.png", 404), ("/start/" + "9" * 5000 + ".png", 404), ("/play.js%00.css", 404), ("/play", 404),
        ("/start/0.png", 200), ("/play.js", 200), ("/play.css", 200),
    ],
)  # fmt: skip
def test_paths(path: str, code: int) -> None:
    assert client().get(path).status_code == code


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_only_reading(method: str) -> None:
    assert client().request(method, "/").status_code == 405


def test_a_token_is_shown_once_and_then_kept_in_a_cookie() -> None:
    guarded = client(token=TOKEN)
    for query in ("", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?token={TOKEN}&token={TOKEN}", "?token=é"):
        assert guarded.get(f"/{query}").status_code == 401
    assert guarded.get(f"/play.js?token={TOKEN}").status_code == 401
    with pytest.raises(WebSocketDenialResponse) as refused:
        with guarded.websocket_connect(f"/play?token={TOKEN}", headers=OWN):
            pass
    assert refused.value.status_code == 401
    answer = guarded.get(f"/?token={TOKEN}")
    assert answer.status_code == 303 and "SameSite=strict" in answer.headers["set-cookie"]
    assert "HttpOnly" in answer.headers["set-cookie"]
    with guarded.websocket_connect("/play", headers={**OWN, "cookie": f"a=b; {COOKIE}={TOKEN}"}):
        pass
    for cookie in (f"{COOKIE}=wrong", f"{COOKIE}x={TOKEN}", f"x{COOKIE}={TOKEN}", COOKIE):
        assert client(token=TOKEN).get("/", headers={"cookie": cookie}).status_code == 401
