"""Split files and lists say which videos there are; one that is missing or contradicts itself is one clear line."""

from pathlib import Path

import pytest

from magi.data.index.sources import Listing, Source, list_videos
from magi.errors import DataError


def listed(root: Path, annotations: str = "", split: str = "") -> Listing:
    return list_videos(Source.of(root, annotations, split))


def files(listing: Listing) -> list[tuple[str, int | None]]:
    return [(file.path, file.label) for file in listing.files()]


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Diving\n")
    (lists / "trainlist01.txt").write_text("Archery/v_a.avi 1\nDiving/v_b.avi 2\n")
    (lists / "testlist01.txt").write_text("Diving/v_c.avi\n")
    for name in ("Archery/v_a.avi", "Diving/v_b.avi", "Diving/v_c.avi"):
        (tmp_path / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "UCF-101" / name).touch()
    return tmp_path


def write_list(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("split", ["trainlist01", "train01"])
def test_a_ucf101_split_is_found_by_both_names(ucf: Path, split: str) -> None:
    listing = listed(ucf / "UCF-101", str(ucf / "lists"), split)
    assert files(listing) == [("Archery/v_a.avi", 0), ("Diving/v_b.avi", 1)]
    assert (listing.count, listing.unlisted, listing.missing) == (2, 1, 0)
    assert files(listed(ucf, str(ucf / "lists"), split)) == [
        ("UCF-101/Archery/v_a.avi", 0),
        ("UCF-101/Diving/v_b.avi", 1),
    ]


@pytest.mark.parametrize(
    ("split", "change", "error", "line"),
    [
        ("", {}, ValueError, r"data\.split is empty: .* has testlist01, trainlist01; choose one"),
        ("trainlist09", {}, ValueError, r"trainlist09\.txt: no such split file; .* has testlist01, trainlist01"),
        (
            "train01",
            {"trainlist01": "Archery/v_a.avi 2\n"},
            DataError,
            r"line 1: the label of .* is 2, but .* 1; the files",
        ),
        ("train01", {"trainlist01": "Rowing/v_a.avi 1\n"}, DataError, r"line 1: 'Rowing' is no class of classInd\.txt"),
        ("train01", {"classInd": "1 Archery\n3 Diving\n"}, DataError, r"classInd\.txt: line 2: expected '2 ClassName'"),
        ("train01", {"trainlist01": "\xff\xfe"}, DataError, r"cannot be read as text"),
        ("train01", {"trainlist01": "Archery/v_z.avi 1\n"}, DataError, r"holds none of the 1 videos"),
    ],
)
def test_a_bad_ucf101_list_is_one_line(
    ucf: Path, split: str, change: dict[str, str], error: type[Exception], line: str
) -> None:
    for name, text in change.items():
        (ucf / "lists" / f"{name}.txt").write_text(text, encoding="latin-1")
    with pytest.raises(error, match=line) as caught:
        listed(ucf / "UCF-101", str(ucf / "lists"), split)
    assert "\n" not in str(caught.value)


def test_annotations_that_are_not_there_are_one_line(ucf: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.annotations .*nowhere: no such file or folder"):
        listed(ucf, str(ucf / "nowhere"))
    with pytest.raises(ValueError, match=r"holds neither classInd\.txt \(UCF-101\) nor a \.csv"):
        listed(ucf, str(ucf / "UCF-101"))
    with pytest.raises(ValueError, match=r"data\.split 'train': .* is a folder, and only a list or data\.annotations"):
        listed(ucf, split="train")
    with pytest.raises(ValueError, match="is a list and names its labels itself"):
        Source.of(write_list(ucf, "path\na.mp4\n"), "x")


@pytest.mark.parametrize("split", ["val", "validate", "VAL"])
def test_kinetics_names_its_validation_split_in_several_ways(tmp_path: Path, split: str) -> None:
    (tmp_path / "x_000001_000011.mp4").touch()
    rows = "label,youtube_id,time_start,time_end,split,is_cc\nzumba,x,1,11,validate,0\nyoga,y,1,11,train,0\n"
    table = write_list(tmp_path, rows, "k600.csv")
    assert files(listed(tmp_path, str(table), split)) == [("x_000001_000011.mp4", 1)]
    with pytest.raises(ValueError, match=r"data\.split 'vol': .*k600\.csv has no such split; it has train, val"):
        listed(tmp_path, str(table), "vol")


def test_a_list_keeps_its_order_names_and_splits(tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"1234")
    path = write_list(tmp_path, 'path,label,split\nb.mp4,dog,train\n"a,1.mp4",cat,train\n/x/c.mp4,eel,test\n')
    listing = listed(path, split="train")
    assert listing.classes == ("cat", "dog", "eel") and listing.count == 2
    assert files(listing) == [("b.mp4", 1), ("a,1.mp4", 0)]
    assert next(listing.files()).bytes == 4 and listing.source.root == tmp_path
    assert files(listed(path)) == [("b.mp4", 1), ("a,1.mp4", 0), ("/x/c.mp4", 2)]
    lines = '{"path": "b.mp4", "label": "dog"}\n\n{"path": "\u00e9\\n.mp4", "label": "cat"}\n'
    assert files(listed(write_list(tmp_path, lines, "list.jsonl"))) == [("b.mp4", 1), ("\u00e9\n.mp4", 0)]


def test_class_numbers_stay_what_they_are(tmp_path: Path) -> None:
    listing = listed(write_list(tmp_path, "path,label\na.mp4,3\nb.mp4,0\n"))
    assert listing.classes == ("0", "1", "2", "3") and files(listing) == [("a.mp4", 3), ("b.mp4", 0)]
    assert files(listed(write_list(tmp_path, '{"path": "a.mp4", "label": 1}\n', "n.jsonl"))) == [("a.mp4", 1)]
    assert listed(write_list(tmp_path, "path\na.mp4\n")).classes == ()


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("l.csv", "path,lable\na.mp4,x\n", r"unknown column 'lable'; did you mean 'label'\?"),
        ("l.csv", "file,label\na.mp4,x\n", r"unknown column 'file'; expected path, label, split"),
        ("l.csv", "label\nx\n", "the column 'path' is missing; it has label"),
        ("l.csv", "path,label\n", "has no rows"),
        ("l.csv", "", "has no rows"),
        ("l.csv", "path,label\na.mp4\n", "line 2: has another number of fields than the 2 columns"),
        ("l.csv", "path,label\na,b.mp4,x\n", "line 2: has another number of fields"),
        ("l.csv", "path,label\na.mp4,x\nb.mp4,\n", "line 3: labels do not match up"),
        ("l.csv", "path,label\na.mp4,x\n,y\n", "line 3: path is empty"),
        ("l.csv", "path,label\na.mp4,x\nb.mp4,x\na.mp4,y\n", "line 4: 'a.mp4' is listed twice"),
        ("l.csv", "path,label\na.mp4,99999999\n", "label 99999999 is no class number"),
        ("l.csv", 'path\n"a.mp4\n', "cannot be read as a table"),
        ("l.jsonl", '{"path": "a.mp4"}\n{"path": \n', "line 2: is no JSON"),
        ("l.jsonl", "[1]\n", "line 1: expected an object, got list"),
        ("l.jsonl", '{"path": ["a"]}\n', r"line 1: expected text or a number, got \['a'\]"),
        ("l.jsonl", '{"path": "a.mp4", "caption": "x"}\n', "unknown column 'caption'"),
        ("l.jsonl", "[" * 100_000, "line 1: is no JSON"),
    ],
)
def test_a_bad_list_is_one_line(tmp_path: Path, name: str, text: str, line: str) -> None:
    path = write_list(tmp_path, text, name)
    with pytest.raises(DataError, match=line) as caught:
        listed(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_list_and_a_bad_number_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv: no such list"):
        listed(tmp_path / "nowhere.csv")
    table = write_list(tmp_path, "label,youtube_id,time_start,time_end\nyoga,x,one,two\n")
    with pytest.raises(DataError, match="line 2: time_start 'one' and time_end 'two' are no seconds"):
        listed(tmp_path, str(table))
