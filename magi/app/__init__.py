"""The page in the browser where a model dreams under your keys: ``create_app(pipeline)`` is an ASGI application.

It needs the extra ``app`` (Starlette, uvicorn, websockets), which is imported when the name is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magi.app.server import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'magi.app' has no attribute '{name}'")
    from magi.app import server

    return getattr(server, name)
