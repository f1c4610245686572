"""What a container tells of its file that FFmpeg does not look at.

Where it says that its file ends (mp4 and mov, Matroska and WebM, AVI): FFmpeg stops without an error at the end of a
truncated Matroska or AVI file. And the checksums of Matroska's clusters, which many writers leave behind.
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_SEGMENT, _CLUSTER, _CRC = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xbf\x84"
_PIECE = 1 << 20


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
    if head[offset : offset + 4] != _SEGMENT:
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


def unsound_clusters(path: Path) -> list[range]:
    """The bytes of the clusters of a Matroska file whose CRC-32 is not that of their content; none in other files.

    A cluster without a checksum counts as sound. RFC 9559, section 5.1.3, and RFC 8794, section 11.3.1, for the
    checksum: little-endian, of all of the cluster that follows it.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        return [] if head[:4] != b"\x1a\x45\xdf\xa3" else list(_unsound_clusters(file, head))


def _unsound_clusters(file: BinaryIO, head: bytes) -> Iterator[range]:
    header, offset = _ebml_size(head, 4)
    offset += header
    if head[offset : offset + 4] != _SEGMENT:
        return
    _, offset = _ebml_size(head, offset + 4)
    while len(box := (file.seek(offset), file.read(24))[1]) > 12:
        # The ids of all elements at this level have four bytes, but for padding (Void) and checksums.
        names = 1 if box[:1] in (b"\xec", b"\xbf") else 4
        if names == 4 and box[0] >> 4 != 1:
            return  # no element: damage, or a hole that could be walked through for hours
        size, start = _ebml_size(box, names)
        end = offset + start + size
        if box[:4] == _CLUSTER and box[start : start + 2] == _CRC:
            file.seek(offset + start + 6)
            if _crc32(file, size - 6) != int.from_bytes(box[start + 2 : start + 6], "little"):
                yield range(offset, end)
        offset = end


def _crc32(file: BinaryIO, size: int) -> int:
    crc = 0
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        crc, size = zlib.crc32(piece, crc), size - len(piece)
    return crc
