"""Every form in which data sets hand out captions, written here as they come; what is wrong with a row or a file."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from magi.data.caption_files import CaptionColumns, CaptionError, CaptionRow, open_captions
from magi.data.index.table import TableError

WHOLE = [CaptionRow("a.mp4", "a cat, asleep"), CaptionRow("x/b.mp4", "a dog")]
SEGMENTS = [CaptionRow("xyz-_0", "it's a cat", 8.141, 17.849), CaptionRow("xyz-_0", 'a "dog"', 17.849, 3623.5)]

FORMS: dict[str, tuple[str, str, list[CaptionRow]]] = {
    "VideoFolder": ("metadata.csv", 'file_name,text\na.mp4,"a cat, asleep"\nx/b.mp4,a dog\n', WHOLE),
    "VideoFolder, JSONL": (
        "metadata.jsonl",
        '{"file_name": "a.mp4", "caption": "a cat,\\n asleep", "width": 3}\n'
        '{"file_name": "x/b.mp4", "caption": "a dog"}\n',
        WHOLE,
    ),
    "OpenVid": (
        "OpenVid-1M.csv",
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
        'a.mp4,"a cat, asleep",5.1,2.0,0.99,static,200,25.0,8.0\nx/b.mp4,a dog,5.1,2.0,0.99,pan_left,200,25.0,8.0\n',
        WHOLE,
    ),
    "WebVid": (
        "results_2M_train.csv",
        'videoid,contentUrl,duration,page_dir,name\n17,https://v/17.mp4,PT00H00M19S,001_050,"a cat, asleep"\n',
        [CaptionRow("001_050/17", "a cat, asleep")],
    ),
    "Panda-70M": (
        "panda70m_training_2m.csv",
        "videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection\n"
        "xyz-_0,https://v?v=xyz-_0,\"[['0:00:08.141', '0:00:17.849'], ['0:00:17.849', '1:00:23.500']]\","
        '"[""it\'s a cat"", \'a ""dog""\']","[0.5, 0.4]","[\'desirable\', \'desirable\']","[[], []]"\n',
        SEGMENTS,
    ),
    "Koala-36M": (
        "Koala_36M.csv",
        "videoID,url,timestamp,caption,clarity_score\n"
        "xyz-_0,https://v?v=xyz-_0,\"['0:00:08.141', '0:00:17.849']\",it's a cat,0.9\n"
        "xyz-_0,https://v?v=xyz-_0,\"['0:00:17.849', '1:00:23.500']\",\"a \"\"dog\"\"\",0.9\n",
        SEGMENTS,
    ),
    "InternVid": (
        "InternVid-10M.jsonl",
        json.dumps({"YoutubeID": "xyz-_0", "Start_timestamp": "00:00:08.141", "End_timestamp": "00:00:17.849",
                    "Caption": "it's a cat", "Aesthetic_Score": 4.2, "UMT_Score": 0.4}) + "\n"
        + json.dumps({"YoutubeID": "xyz-_0", "Start_timestamp": "00:00:17.849", "End_timestamp": "01:00:23.500",
                      "Caption": 'a "dog"', "Aesthetic_Score": 4.2, "UMT_Score": 0.4}) + "\n",
        SEGMENTS,
    ),
    "InternVid, in short": (
        "internvid.jsonl",
        '{"id": "xyz-_0", "start": 8.141, "end": 17.849, "caption": "it\'s a cat", "similarity": 0.4}\n'
        '{"id": "xyz-_0", "start": 17.849, "end": 3623.5, "caption": "a \\"dog\\"", "similarity": 0.4}\n',
        SEGMENTS,
    ),
    "lists": ("videos.txt", "a.mp4\nx/b.mp4\n", WHOLE),
    "a mark of byte order": ("metadata.csv", '\ufefffile_name,text\na.mp4,"a cat, asleep"\nx/b.mp4,a dog\n', WHOLE),
}  # fmt: skip


def captions(path: Path, columns: CaptionColumns | None = None) -> list[CaptionRow | str]:
    """All captions, and in the place of a bad row what is wrong with it."""
    found: list[CaptionRow | str] = []
    for _, rows in open_captions(path, columns).rows():
        found += [str(rows)] if isinstance(rows, CaptionError) else rows
    return found


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_forms_as_they_come(form: str, tmp_path: Path) -> None:
    name, text, expected = FORMS[form]
    path = write(tmp_path / name, text)
    if form == "lists":
        write(tmp_path / "prompts.txt", "a cat, asleep\na dog\n")
    assert captions(path) == expected
    if name.startswith(("metadata", "videos")):
        assert captions(tmp_path) == expected


@pytest.mark.parametrize("form", ["VideoFolder", "Panda-70M", "InternVid"])
def test_parquet_has_the_same_columns(form: str, tmp_path: Path) -> None:
    tables: dict[str, dict[str, list[Any]]] = {
        "VideoFolder": {"file_name": ["a.mp4", "x/b.mp4"], "caption": ["a cat, asleep", "a dog"]},
        "Panda-70M": {
            "videoID": ["xyz-_0"],
            "timestamp": [[["0:00:08.141", "0:00:17.849"], ["0:00:17.849", "1:00:23.500"]]],
            "caption": [["it's a cat", 'a "dog"']],
        },
        "InternVid": {"id": ["xyz-_0"] * 2, "start": [8.141, 17.849], "end": [17.849, 3623.5],
                      "caption": ["it's a cat", 'a "dog"']},
    }  # fmt: skip
    parquet.write_table(pyarrow.table(tables[form]), tmp_path / "metadata.parquet")
    assert captions(tmp_path) == (WHOLE if form == "VideoFolder" else SEGMENTS)


def test_columns_that_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", "clip,short,long,from,to\na.mp4,cat,a cat,1:02.5,\nb.mp4,dog,a dog,,4\n")
    assert captions(path, CaptionColumns("clip", "long", "from", "to")) == [
        CaptionRow("a.mp4", "a cat", 62.5, math.inf),
        CaptionRow("b.mp4", "a dog", 0, 4),
    ]
    assert captions(path, CaptionColumns("clip", "short")) == [CaptionRow("a.mp4", "cat"), CaptionRow("b.mp4", "dog")]


PANDA = "videoID,timestamp,caption\n"
HUGE = "x" * 200_000


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.jsonl", '{"video": "a", "caption": NaN}', CaptionRow("a", "")),
        ("a.jsonl", '{"video": "a", "caption": null}', CaptionRow("a", "")),
        ("a.jsonl", '{"video": "a", "caption": 7}', CaptionRow("a", "7")),
        ("a.jsonl", '{"video": "a", "caption": ["b"]}', "'caption' is list, not text"),
        ("a.jsonl", '{"video": NaN, "caption": "b"}', "'video' is empty"),
        ("a.jsonl", '{"video": "a", "caption": "b\\u0000"}', "its caption: character 1 is U+0000,"),
        ("a.jsonl", '{"video": "a", "caption": "\\ud800"}', "its caption: character 0 is U+D800,"),
        ("a.jsonl", f'{{"video": "a", "caption": "{HUGE * 2}"}}', "a caption of 400,000 characters"),
        ("a.csv", PANDA + "a,\"[['0:00:01', '0:00:02']]\",\"['b', 'c']\"\n", "1 segments in 'timestamp', but 2"),
        ("a.csv", PANDA + "a,\"[['0:00:01']]\",\"['b']\"\n", "'timestamp' is no list of (start, end)"),
        ("a.csv", PANDA + "a,\"['0:00:02', '0:00:01']\",b\n", "a segment from 2 to 1 seconds"),
        ("a.csv", PANDA + "a,\"['0:00:02', 'nan']\",b\n", "'nan' is no time in seconds or as h:mm:ss"),
        ("a.csv", PANDA + "a,\"__import__('os').system('exit')\",b\n", "'timestamp' is no list"),
        ("a.csv", PANDA + f"a,{'[' * 100_000},b\n", "'timestamp' is no list"),
        ("a.csv", PANDA + f"a,{'-' * 100_000}1,b\n", "'timestamp' is no list"),
        ("a.jsonl", '{"id": "a", "caption": "b", "start": NaN, "end": 2}', "nan is no time in seconds or as h:mm:ss"),
        ("a.jsonl", '{"id": "a", "caption": "b", "start": -1, "end": 2}', "-1 is no time in seconds or as h:mm:ss"),
        ("a.jsonl", '{"id": "a", "caption": "b", "start": 0, "end": Infinity}', "inf is no time in seconds"),
    ],
)  # fmt: skip
def test_a_row_that_means_nothing_says_why(name: str, text: str, what: CaptionRow | str, tmp_path: Path) -> None:
    (found,) = captions(write(tmp_path / name, text))
    if isinstance(what, CaptionRow):
        assert found == what
    else:
        assert isinstance(found, str)
        assert what in found


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", f"video,caption\na.mp4,{HUGE}\n", "cannot be read as a table .field larger than field limit"),
        ("a.csv", "video,caption\na.mp4,b,c\n", "line 2: has another number of fields than the 2 columns"),
        ("a.csv", "video,caption\n", "has no rows"),
        ("a.jsonl", '{"video": "a", "caption": "b"}\n{"video"', "line 2: is no JSON"),
        ("a.parquet", "PAR1 and nothing", "cannot be read as Parquet"),
        ("videos.txt", "a.mp4\nb.mp4\nc.mp4\n", "prompts.txt: ends at line 2, before videos.txt; the lines do not"),
        ("videos.txt", "a.mp4\n", "videos.txt: ends at line 1, before prompts.txt"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(name: str, text: str, line: str, tmp_path: Path) -> None:
    write(tmp_path / "prompts.txt", "one\ntwo\n")
    with pytest.raises(TableError, match=line) as caught:
        captions(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "videos.txt"])
def test_another_encoding_is_one_line(name: str, tmp_path: Path) -> None:
    write(tmp_path / "prompts.txt", "caf\u00e9\n", "latin-1")
    text = {
        "a.csv": "video,caption\na,caf\u00e9\n",
        "a.jsonl": '{"video": "a", "caption": "\u00e9"}',
        "videos.txt": "a\n",
    }
    with pytest.raises(TableError, match=r"cannot be read as .*utf-8"):
        captions(write(tmp_path / name, text[name], "latin-1"))


def test_what_is_not_known_or_not_there_is_a_usage_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "clip,words\na.mp4,b\n")
    with pytest.raises(ValueError, match="name them with --path-column and --caption-column; it has 'clip', 'words'"):
        captions(path)
    with pytest.raises(ValueError, match=r"no column 'word'; did you mean ''words''\?"):
        captions(path, CaptionColumns("clip", "word"))
    with pytest.raises(ValueError, match="no such file or folder"):
        captions(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"expected annotations as .csv, .jsonl, .parquet, or videos.txt"):
        captions(write(tmp_path / "a.xlsx", ""))
    with pytest.raises(ValueError, match=r"holds none of metadata.csv, metadata.jsonl, metadata.parquet, videos.txt"):
        captions(tmp_path)
    with pytest.raises(ValueError, match=r"no prompts.txt or prompt.txt or captions.txt beside it"):
        captions(write(tmp_path / "videos.txt", "a.mp4\n"))
    write(tmp_path / "metadata.csv", "file_name,text\n")
    with pytest.raises(ValueError, match=r"holds metadata.csv and videos.txt; name the one to read"):
        captions(tmp_path)
    with pytest.raises(ValueError, match=r"name the list of videos beside it, videos.txt"):
        captions(write(tmp_path / "prompts.txt", "b\n"))
