"""What page and server say to each other: JSON from the page, checked here; pictures from the server, packed here.

A frame is ``HEADER`` and pixels: all views below each other (the dream, then the real world), as RGBA up to
``MOST_RAW`` pixels a side, else as one JPEG. A recording is ``HEADER`` and a zip. It knows no sockets and no models.
"""

import io
import math
import struct
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Picture = NDArray[np.uint8]
"""uint8 RGB of (height, width, 3)."""

MOST_TEXT = 4096
"""Bytes of a message from a page."""
MOST_PROMPT = 1000
"""Characters; a model may read fewer."""
MOST_RAW = 128
HEADER = struct.Struct("<4sIIQIHHBBBxf")
"""Magic, frame number, key sequence number obeyed, server's clock and generation time in microseconds, width and height
of a view, views, format, whether the frame is late, error of the state in pixels (NaN: not known)."""
MAGIC = b"MAGI"
RAW, JPEG, ZIP = range(3)
_UINT32 = 2**32 - 1


class Message(BaseModel):
    """What a page may say; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StartMessage(Message):
    """Dream from a start frame; the first message, and every restart."""

    type: Literal["start"]
    start: int = Field(ge=0, le=999)
    seed: int = Field(0, ge=0, le=_UINT32)


class KeysMessage(Message):
    """The action of the keys that are held now, -1 for none; ``seq`` counts the changes."""

    type: Literal["keys"]
    action: int = Field(ge=-1, le=9999)
    seq: int = Field(ge=0, le=_UINT32)


class AckMessage(Message):
    """A frame is on the screen."""

    type: Literal["ack"]
    frame: int = Field(ge=0, le=_UINT32)


class PauseMessage(Message):
    """Stop or go on."""

    type: Literal["pause"]
    paused: bool


class LabelMessage(Message):
    """Dream on in a class; -1 is none."""

    type: Literal["label"]
    label: int = Field(ge=-1, le=999_999)


class PromptMessage(Message):
    """Dream on under a text, from the next frame on; an empty one is none."""

    type: Literal["prompt"]
    text: str = Field(max_length=MOST_PROMPT)


class SettingsMessage(Message):
    """Change how frames are made; what is not given stays."""

    type: Literal["settings"]
    temperature: float | None = Field(None, ge=0, le=2)
    guidance: float | None = Field(None, ge=0, le=20)
    speed: Literal["full", "fast"] | None = None
    fps: float | None = Field(None, ge=0, le=240)


class RecordMessage(Message):
    """Begin a recording, or end it and have it sent."""

    type: Literal["record"]
    on: bool


AnyMessage = (
    StartMessage | KeysMessage | AckMessage | PauseMessage | LabelMessage | PromptMessage | SettingsMessage
    | RecordMessage
)  # fmt: skip
_MESSAGES: TypeAdapter[AnyMessage] = TypeAdapter(Annotated[AnyMessage, Field(discriminator="type")])


def read_message(text: str) -> AnyMessage:
    """The message in ``text``; ValueError for anything else."""
    return _MESSAGES.validate_json(text)


def pack_frame(
    number: int, key_seq: int, views: Sequence[Picture], generation_s: float, late: bool, error: float | None
) -> bytes:
    """A frame of one or more views of one size."""
    picture_HWC = np.concatenate(views)
    height, width = views[0].shape[:2]
    if max(height, width) <= MOST_RAW:
        format, alpha_HW1 = RAW, np.full((*picture_HWC.shape[:2], 1), 255, np.uint8)
        pixels = np.concatenate([picture_HWC, alpha_HW1], axis=2).tobytes()
    else:
        file = io.BytesIO()
        Image.fromarray(picture_HWC).save(file, "JPEG", quality=90, subsampling=0)
        format, pixels = JPEG, file.getvalue()
    clock, took = time.monotonic_ns() // 1000, min(_UINT32, round(1e6 * generation_s))
    distance = math.nan if error is None else error
    return HEADER.pack(MAGIC, number, key_seq, clock, took, width, height, len(views), format, late, distance) + pixels


def pack_recording(archive: bytes) -> bytes:
    """A finished recording."""
    return HEADER.pack(MAGIC, 0, 0, time.monotonic_ns() // 1000, 0, 0, 0, 0, ZIP, False, math.nan) + archive
