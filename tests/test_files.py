"""Files are whole or as they were, and blocks of pages are replaced exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from magi.files import (
    atomic_write,
    is_temporary,
    open_file,
    read_text,
    replace_markdown_block,
    text_lines,
    write_json,
    write_markdown_block,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file"
    write_text(path, "old")

    def died(*_: object) -> None:
        raise OSError("died")

    monkeypatch.setattr(os, "replace", died)
    with pytest.raises(OSError, match="died"):
        write_text(path, "new")
    assert path.read_text() == "old" and names(path.parent) == ["file"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half"), atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("hal")
        raise RuntimeError("half")
    assert names(tmp_path) == []


def test_the_name_appears_at_the_end_alone(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"12")
        assert names(tmp_path) == [temporary.name]
        assert temporary.name.startswith(".file.") and temporary.suffix == ".part"
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"12"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as first, atomic_write(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from magi.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary: temporary.write_text('hal'); os.kill(os.getpid(), 9)"
    )
    killed, foreign = tmp_path / "killed", tmp_path / ".a.part"
    assert subprocess.run([sys.executable, "-c", code, killed], check=False).returncode == -9
    foreign.touch()
    [left] = [path for path in tmp_path.iterdir() if path != foreign]
    assert is_temporary(left.name)
    with atomic_write(tmp_path / "mine") as mine:
        mine.write_text("mine")
        assert names(tmp_path) == sorted([mine.name, foreign.name])
        subprocess.run([sys.executable, "-c", code.replace("os.kill(os.getpid(), 9)", "0"), killed], check=True)
        assert names(tmp_path) == sorted([mine.name, foreign.name, "killed"])


def test_a_byte_of_a_name_that_is_no_text_survives_json(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", ["caf\udce9", "é"])
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == ["caf\udce9", "é"] and "é" in text


def test_a_number_that_json_has_no_word_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["fifo", "device", "empty device", "folder", "gone"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.symlink_to("/dev/zero" if kind == "device" else "/dev/null")
    for use in (read_text, lambda path: list(text_lines(path))):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such file"):
            use(path)
    if kind != "gone":
        with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such device"), open_file(path, "ab"):
            pass


def test_files_and_lines_of_an_absurd_size_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\n\ufefftwo\n")
    os.truncate(path, 8 << 30)
    with pytest.raises(OSError, match="above 268,435,456"):
        read_text(path)
    lines = text_lines(path)
    assert next(lines) == "one\n" and next(lines) == "\ufefftwo\n"
    with pytest.raises(OSError, match="more than 1,000,000 characters"):
        next(lines)


def test_only_the_block_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results:x:begin -->\nold\n<!-- results:x:end -->\nb\n")
    write_markdown_block(page, "x", "new")
    assert page.read_text() == "a\n<!-- results:x:begin -->\nnew\n<!-- results:x:end -->\nb\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- results:x:end --><!-- results:x:begin -->",
        "<!-- results:x:begin --><!-- results:x:begin --><!-- results:x:end -->",
    ],
)
def test_markers_must_be_there_once_and_in_order(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match="once each"):
        replace_markdown_block(tmp_path / "page.md", "x", "new")
    with pytest.raises(ValueError, match="no such file"):
        replace_markdown_block(tmp_path / "other.md", "x", "new")
