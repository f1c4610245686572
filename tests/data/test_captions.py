"""Captions beside videos: what is read, what is none, and what is refused in one line."""

import os
from pathlib import Path

import pytest

from magi.data.captions import caption_path, one_line, read_caption
from magi.errors import DataError


def written(folder: Path, content: bytes) -> Path:
    (folder / "clip.v1.txt").write_bytes(content)
    return folder / "clip.v1.mp4"


def test_the_whole_file_is_one_caption(tmp_path: Path) -> None:
    video = written(tmp_path, "\ufeff a bold  seven\r\n\n moves\tup \n".encode())
    assert caption_path(video) == tmp_path / "clip.v1.txt"
    assert read_caption(video) == "a bold seven moves up"
    assert read_caption(written(tmp_path, "ein Bär 🐻‍❄️".encode())) == "ein Bär 🐻‍❄️"


def test_no_file_and_an_empty_one_are_no_caption(tmp_path: Path) -> None:
    assert read_caption(tmp_path / "clip.mp4") is None
    assert read_caption(written(tmp_path, b" \n\t\n")) is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9", "utf-8"),
        (b"a\x00b", r"character 1 is U\+0000"),
        (b"red \x1b[31m", r"character 4 is U\+001B"),
        (b"a" * (2**20 + 1), "above 1,048,576"),
    ],
)
def test_what_is_no_caption_is_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    video = written(tmp_path, content)
    with pytest.raises(DataError, match=what) as refused:
        read_caption(video)
    assert str(caption_path(video)) in str(refused.value) and "\n" not in str(refused.value)


def test_a_fifo_or_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(DataError, match="no caption"):
            read_caption(tmp_path / f"{name}.mp4")


def test_lone_surrogates_are_no_text() -> None:
    with pytest.raises(ValueError, match=r"U\+DCE9"):
        one_line("caf\udce9")
