"""Captions find their videos and nothing else: by path and by the end of it; every row and video is accounted for."""

import json
import math
from pathlib import Path

import pytest

from magi.cli.main import main
from magi.data.caption_files import open_captions
from magi.data.captions import CaptionSegment, read_caption, read_segments
from magi.data.import_captions import CaptionReport, VideoNames, import_captions
from magi.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Only names matter: nothing is decoded."""
    for name in ("a.mp4", "train/b.mp4", "val/b.mp4", "deep/part1/c.v2.mp4", "d.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def imported(root: Path, rows: list[tuple[str, str]], budget: int = 128, replace: bool = False) -> CaptionReport:
    file = root.parent / "metadata.jsonl"
    file.write_text("".join(json.dumps({"file_name": path, "text": text}) + "\n" for path, text in rows))
    return import_captions(open_captions(file), root, budget, replace=replace)


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("a.mp4", ["a.mp4"]),
        ("a", ["a.mp4"]),
        ("./a.mp4", ["a.mp4"]),
        ("clips/a.mp4", ["a.mp4"]),
        ("clips\\a.mp4", ["a.mp4"]),
        ("a.avi", ["a.mp4"]),
        ("b.mp4", ["train/b.mp4", "val/b.mp4"]),
        ("val/b.mp4", ["val/b.mp4"]),
        ("x/val/b", ["val/b.mp4"]),
        ("test/b.mp4", []),
        ("part1/c.v2", ["deep/part1/c.v2.mp4"]),
        ("part2/c.v2", []),
        ("c", []),
        ("", []),
        (".", []),
        ("a\0b", []),
        ("train", []),
    ],
)
def test_a_path_finds_the_video_whose_end_it_is(root: Path, named: str, found: list[str]) -> None:
    assert VideoNames(root).find(named) == found


def test_an_exact_path_comes_before_the_end_of_another(root: Path) -> None:
    (root / "train/a.mp4").touch()
    assert VideoNames(root).find("a.mp4") == ["a.mp4"]
    (root / "a.mov").touch()
    assert VideoNames(root).find("a.mov") == ["a.mov"] and len(VideoNames(root).find("a")) == 2


def test_an_absolute_path_counts_where_it_leads_into_the_folder(root: Path) -> None:
    assert VideoNames(root).find(str(root / "val/b.mp4")) == ["val/b.mp4"]


@pytest.mark.parametrize("named", ["../a.mp4", "x/../../a.mp4", "/etc/a.mp4", "C:\\clips\\a.mp4", "//host/a.mp4"])
def test_a_path_that_leads_out_touches_nothing(root: Path, named: str) -> None:
    before = {path.name for path in root.parent.rglob("*")}
    report = imported(root, [("d", "a duck"), (named, "a cat")])
    assert report.outside.count == 1 and "leads out of the folder" in report.outside.examples[0]
    assert {path.name for path in root.parent.rglob("*")} - before == {
        "d.txt",
        "metadata.jsonl",
    }


def test_every_row_and_video_is_accounted_for(root: Path) -> None:
    rows = [
        ("a.mp4", "a  cat"), ("a", "a dog"), ("b.mp4", "which one?"), ("val/b.mp4", ""), ("train/b.mp4", "é" * 65),
        ("e.mp4", "a bird"), ("../a.mp4", "a fox"),
    ]  # fmt: skip
    report = imported(root, rows)
    assert (report.rows, report.written, report.kept) == (7, 2, 0)
    assert read_caption(root / "a.mp4") == "a cat" and (root / "a.txt").read_text() == "a cat\n"
    assert report.repeated.examples == ["line 2: 'a'"] and report.empty.examples == ["line 4: 'val/b.mp4'"]
    assert report.ambiguous.examples == ["line 3: 'b.mp4' ('train/b.mp4', 'val/b.mp4')"]
    assert report.unmatched.examples == ["line 6: 'e.mp4'"] and report.outside.count == 1
    assert report.too_long.examples == ["'train/b.mp4' (130 tokens)"] and not report.unusable.count
    assert report.uncaptioned.examples == ["'d.mkv'", "'deep/part1/c.v2.mp4'", "'val/b.mp4'"]
    again = imported(root, rows)
    assert (again.written, again.kept) == (0, 2)


def test_captions_that_are_there_are_not_overwritten_unasked(root: Path) -> None:
    (root / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"a.txt: says something else \(1 such files\); --replace overwrites them"):
        imported(root, [("d", "a duck"), ("a", "a cat")])
    assert not (root / "d.txt").exists() and read_caption(root / "a.mp4") == "mine"
    assert imported(root, [("d", "a duck"), ("a", "a cat")], replace=True).written == 2
    assert read_caption(root / "a.mp4") == "a cat"


def test_too_many_bad_rows_and_no_match_are_refused_before_anything_is_written(root: Path) -> None:
    file = root.parent / "p.csv"
    file.write_text("videoID,timestamp,caption\na,\"['0:00:00', '0:00:02']\",b\nd,x,y\n")
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used, .* the first: line 3: 'timestamp' is no list"):
        import_captions(open_captions(file), root, 128)
    with pytest.raises(DataError, match=r"none of its 1 rows captions a video of .* 'a.mp4'\); a row: line 1: 'z'"):
        imported(root, [("z", "a cat")])
    (root.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"no videos \(.mp4"):
        import_captions(open_captions(file), root.parent / "empty", 128)
    assert not list(root.rglob("*.txt")) and not list(root.rglob("*.jsonl"))


def test_segments_of_a_video_are_written_as_such(root: Path) -> None:
    file = root.parent / "p.csv"
    file.write_text(
        "videoID,timestamp,caption\n"
        "a,\"[['0:00:00', '0:00:02.5'], ['0:00:02.5', '0:00:09'], ['0:00:03', '0:00:04']]\",\"['x', 'y', 'z']\"\n"
    )
    report = import_captions(open_captions(file), root, 128)
    assert report.written == 1 and read_caption(root / "a.mp4") is None and report.uncaptioned.count == 4
    segments = read_segments(root / "a.mp4")
    assert segments[0] == CaptionSegment(0, 2.5, "x") and len(segments) == 3
    (root / "d.captions.jsonl").write_text('{"start": 1, "end": null, "caption": "to the end"}\n')
    assert read_segments(root / "d.mkv") == [CaptionSegment(1, math.inf, "to the end")]


@pytest.mark.parametrize(
    "text", ['{"start": 1}', "[1]", "{", '{"start": 2, "end": 1, "caption": "a"}', '{"start": NaN, "caption": "a"}',
             '{"start": 0, "caption": null}', '{"start": 0, "caption": "a\\u0007"}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_list_of_segments_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.captions.jsonl").write_text('{"start": 0, "end": 1, "caption": "b"}\n' + text)
    with pytest.raises(DataError, match=r"a.captions.jsonl: no caption of segment 2") as caught:
        read_segments(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


def test_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root.parent / "mine.csv"
    file.write_text('clip name,words\na.mp4,a cat\nz.mp4,a dog\nval/b.mp4,"' + "long " * 30 + '"\n')
    words = ["data", "captions", str(file), str(root)]
    assert main(words) == 2 and "name them with --path-column" in capsys.readouterr().err
    assert main([*words, "--path-column", "clip name"]) == 2 and "name both" in capsys.readouterr().err
    columns = ["--path-column", "clip name", "--caption-column", "words"]
    assert main([*words, *columns]) == 0
    out = capsys.readouterr().out
    assert "columns 'clip name', 'words'" in out and "captions of 2 videos written, from 3 rows" in out
    assert "1 rows match no video: line 3: 'z.mp4'" in out and "1 captions are above 128 bytes: 'val/b.mp4'" in out
    assert "3 videos have no caption: 'd.mkv', " in out
    file.write_bytes(b"clip name,words\na.mp4,caf\xe9\n")
    assert main([*words, *columns]) == 3 and capsys.readouterr().err.count("\n") == 1
