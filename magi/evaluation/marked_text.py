"""Tables in pages: what stands between the markers ``results:NAME:begin`` and ``end`` is written by a command.

It knows no table. Reports are read where video libraries are not, so it imports none before it writes.
"""

from pathlib import Path


def replaced(path: Path, name: str, text: str) -> str:
    """The page at ``path`` with ``text`` between the markers of ``name``; nothing is written.

    ``ValueError`` where there is no such page, or the markers are not there once each and in order.
    """
    begin, end = (f"<!-- results:{name}:{word} -->" for word in ("begin", "end"))
    if not path.is_file():
        raise ValueError(f"{path}: no such file (--readme)")
    old = path.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(
            f"{path}: needs the lines '{begin}' and, after it, '{end}', once each; add them where it belongs"
        )
    before, _, rest = old.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def write_between_markers(path: Path, name: str, text: str) -> None:
    """Write ``replaced`` over the page, whole or not at all; its errors."""
    from magi.data.video_writer import published

    page = replaced(path, name, text)
    with published(path) as beside:
        beside.write_text(page, encoding="utf-8")
