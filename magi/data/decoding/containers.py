"""Where a container says that its file ends: mp4 and mov, Matroska and WebM, AVI.

FFmpeg stops without an error at the end of a truncated Matroska or AVI file; the size fields tell.
"""

from collections.abc import Callable
from pathlib import Path


def declared_end(path: Path) -> int:
    """Where the container's own size fields say that the file ends, in bytes; 0 for a container that is not known."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(head)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_end(lambda offset: (file.seek(offset), file.read(16))[1])
    return 0


def _matroska_end(head: bytes) -> int:
    """End of the segment that follows the EBML header; the length is unknown (and ignored) in live recordings."""
    header, offset = _ebml_size(head, 4)
    offset += header
    if head[offset : offset + 4] != b"\x18\x53\x80\x67":
        return len(head)
    size, start = _ebml_size(head, offset + 4)
    unknown = (1 << (7 * (start - offset - 4))) - 1
    return len(head) if size == unknown else start + size


def _ebml_size(head: bytes, offset: int) -> tuple[int, int]:
    """A variable-length size and the offset behind it."""
    first = head[offset] if offset < len(head) else 0
    length = 9 - first.bit_length() if first else 1
    value = int.from_bytes(head[offset : offset + length], "big")
    return value & ((1 << (7 * length)) - 1), offset + length


def _mp4_end(read: Callable[[int], bytes]) -> int:
    """End of the last known top-level box; what follows an unknown name is not trusted (trailing bytes are common).

    Every file has its index, ``moov``, as one of these boxes: without it at least a box header is missing.
    """
    known = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"moof", b"mfra", b"sidx", b"styp", b"udta", b"uuid")
    offset, missing = 0, 8
    while len(box := read(offset)) >= 8 and box[4:8] in known:
        size = int.from_bytes(box[:4], "big")
        if size == 1 and len(box) == 16:
            size = int.from_bytes(box[8:16], "big")
        if size < 8:
            break
        missing = 0 if box[4:8] == b"moov" else missing
        offset += size
    return offset + missing
