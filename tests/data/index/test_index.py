"""A folder becomes a checked list in which every file is accounted for, and nothing is decoded twice."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from magi.config import DataConfig
from magi.data.decoding.frames import KEPT, VideoProbe
from magi.data.decoding.probe import DecodeLimits, Outcome, RejectedFile
from magi.data.decoding.sandbox import DecodingSandbox
from magi.data.index.index import VideoIndex, build_index, load_index, open_index
from magi.data.index.records import FORMAT, NUMBERS
from magi.data.index.sources import Source, list_videos
from magi.data.video_writer import write_mp4
from magi.errors import DataError

INDEX_NAME, REPORT_NAME = "magi-index.safetensors", "magi-index-report.json"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "good.mp4"
    video_THWC = np.zeros((12, 32, 48, 3), np.uint8)
    video_THWC[6:] = 200
    write_mp4(path, video_THWC, 25)
    return path


@pytest.fixture
def folder(video: Path, tmp_path: Path) -> Path:
    """Six good videos, one bad; classes 'b one' and 'two'; one video deep in its class, one without a class."""
    root = tmp_path / "videos"
    for name in ("two/x.mp4", "b one/x.mp4", "b one/deep/er/y.MP4", "b one/z.mkv", "two/a.mp4", "free.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, root / name)
    (root / "two" / "empty.mp4").touch()
    for junk in ("two/._x.mp4", ".DS_Store", "two/Thumbs.db"):
        (root / junk).touch()
    (root / "two" / "x.json").write_text("{}")
    (root / ".hidden").mkdir()
    shutil.copy(video, root / ".hidden" / "h.mp4")
    (root / "no videos").mkdir()
    return root


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, in order; the sandbox itself is replaced where the test is not about it."""
    names: list[str] = []

    def probe(self: DecodingSandbox, path: Path) -> Outcome:
        names.append(path.name)
        if path.stat().st_size == 0:
            return RejectedFile("empty_file", "has 0 bytes")
        return VideoProbe(12, 32, 48, 25.0, range(0, 12 * 512, 512))

    monkeypatch.setattr(DecodingSandbox, "probe", probe)
    return names


def build(root: Path, max_bad_fraction: float = 1.0, **settings: Any) -> VideoIndex:
    return build_index(DataConfig(root=str(root), max_bad_fraction=max_bad_fraction), **settings)


def report(root: Path) -> dict[str, object]:
    values = json.loads((root / REPORT_NAME).read_text())
    assert isinstance(values, dict)
    return values


def test_classes_labels_and_accounts(folder: Path) -> None:
    index = build(folder, 0.2)
    assert index.classes == ("b one", "two")
    assert [(record.path, record.label) for record in index.videos] == [
        ("b one/deep/er/y.MP4", 0),
        ("b one/x.mp4", 0),
        ("b one/z.mkv", 0),
        ("free.mp4", None),
        ("two/a.mp4", 1),
        ("two/x.mp4", 1),
    ]
    assert {(record.frames, record.height, record.width, record.fps) for record in index.videos} == {(12, 32, 48, 25.0)}
    assert index.skipped == 1
    assert report(folder) == {
        "listed": 7,
        "usable": 6,
        "usable_frames": 72,
        "frames_a_second": {"lowest": 25.0, "median": 25.0, "highest": 25.0, "variable": 0},
        "classes": 2,
        "skipped": 1,
        "skipped_by_reason": {"empty_file": 1},
        "adjusted": {},
        "annotated_but_missing": 0,
        "ignored_unlisted_videos": 0,
        "ignored_videos_of_other_types": {},
        "ignored_junk_files": 3,
        "ignored_other_files": 1,
        "missing_files": [],
        "kept_stretches": [],
        "skipped_files": [{"path": "two/empty.mp4", "reason": "empty_file", "detail": "has 0 bytes"}],
    }
    assert load_index(Source.of(folder)) == index
    assert sorted(path.name for path in folder.glob("*magi*")) == [".magi-index", REPORT_NAME, INDEX_NAME]


@pytest.mark.parametrize("name", [INDEX_NAME, REPORT_NAME, ".magi-index/magi-index-0-of-1.jsonl"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_in_the_place_of_one_is_replaced_or_named(
    folder: Path, probed: list[str], name: str, kind: str
) -> None:
    whole, path = tuple(build(folder, 1.0).videos), folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    if path.parent == folder:
        assert tuple(build(folder, 1.0).videos) == whole and path.is_file()
        return
    (folder / INDEX_NAME).unlink()  # only then are logs looked into
    with pytest.raises(DataError, match=r"0-of-1\.jsonl: cannot be read or written \((is not a regular|No such dev)"):
        build(folder, 1.0)


def test_a_folder_in_the_place_of_the_index_is_named(folder: Path, probed: list[str]) -> None:
    (folder / INDEX_NAME).mkdir()
    with pytest.raises(DataError, match=r"/magi-index\.safetensors: cannot be read or written \(Is a directory\)"):
        build(folder, 1.0)


def test_videos_of_other_types_are_counted_by_suffix(folder: Path, probed: list[str], tmp_path: Path) -> None:
    build(folder, 1.0)
    for name in ("two/a.WMV", "two/b.wmv", "c.mpg", ".hidden/d.wmv", ".e.wmv", "two/._f.wmv", "notes.txt"):
        (folder / name).touch()
    build(folder, 1.0)
    assert report(folder)["ignored_videos_of_other_types"] == {".mpg": 1, ".wmv": 2} and len(probed) == 7
    assert report(folder)["ignored_other_files"] == 3 and report(folder)["ignored_junk_files"] == 4
    (tmp_path / "flash").mkdir()
    (tmp_path / "flash" / "a.flv").touch()
    with pytest.raises(DataError, match=r"but 1 \.flv, which are not read: convert them to mp4"):
        build(tmp_path / "flash")


def test_the_spread_of_frame_rates_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"x.mp4": 24.0, "free.mp4": 59.94, "z.mkv": 12.5}

    def probe(self: DecodingSandbox, path: Path) -> VideoProbe:
        pts = (0, 1, *range(3, 13)) if path.name == "z.mkv" else range(12)
        return VideoProbe(12, 32, 48, rates.get(path.name, 30.0), pts)

    monkeypatch.setattr(DecodingSandbox, "probe", probe)
    build(folder, 1.0)
    assert report(folder)["frames_a_second"] == {"lowest": 12.5, "median": 30.0, "highest": 59.94, "variable": 1}


def test_too_many_bad_files_end_in_one_line_and_a_report(folder: Path, probed: list[str]) -> None:
    (folder / "empty too.mp4").touch()
    with pytest.raises(DataError) as caught:
        build(folder, 0.1)
    message = str(caught.value)
    for part in (str(folder), "2 of 8", "empty_file 2", "--max-bad-fraction 0.1", REPORT_NAME):
        assert part in message
    assert "\n" not in message
    assert report(folder)["skipped_by_reason"] == {"empty_file": 2}
    with pytest.raises(DataError, match="2 of 8"):
        open_index(DataConfig(root=str(folder)))
    decoded = len(probed)
    assert len(open_index(DataConfig(root=str(folder), max_bad_fraction=0.25)).videos) == 6
    assert len(probed) == decoded == 8


def test_no_usable_video_is_an_error_at_any_tolerance(tmp_path: Path, probed: list[str]) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(DataError, match=r"1 of 1 videos cannot be used \(empty_file 1\): none is left"):
        build(tmp_path, 1.0)


@pytest.mark.parametrize(
    ("make", "error", "line"),
    [
        (lambda path: None, ValueError, "no such folder"),
        (lambda path: path.touch(), ValueError, "is not a folder"),
        (lambda path: path.mkdir(), DataError, r"no videos \(\.mp4, "),
    ],
)
def test_a_folder_without_videos_is_one_line(
    tmp_path: Path, make: Callable[[Path], None], error: type[Exception], line: str
) -> None:
    make(tmp_path / "videos")
    with pytest.raises(error, match=line):
        open_index(DataConfig(root=str(tmp_path / "videos")))


def test_an_unnamed_folder_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"data\.root is empty"):
        open_index(DataConfig())


def test_only_new_and_changed_files_are_decoded_again(folder: Path, video: Path, probed: list[str]) -> None:
    first = build(folder, 1.0)
    assert len(probed) == 7
    probed.clear()
    assert build(folder, 1.0) == first and not probed

    os.utime(folder / "two" / "a.mp4", ns=(1, 1))
    (folder / "two" / "empty.mp4").write_bytes(b"now with content")
    shutil.copy(video, folder / "b one" / "new.mp4")
    (folder / "free.mp4").unlink()
    second = build(folder, 1.0)
    assert sorted(probed) == ["a.mp4", "empty.mp4", "new.mp4"]
    assert [record.path for record in second.videos] == [
        "b one/deep/er/y.MP4",
        "b one/new.mp4",
        "b one/x.mp4",
        "b one/z.mkv",
        "two/a.mp4",
        "two/empty.mp4",
        "two/x.mp4",
    ]
    accounts = {"listed": 7, "usable": 7, "skipped": 0, "ignored_other_files": 1, "skipped_files": []}
    assert accounts.items() <= report(folder).items()


def test_chance_failures_are_tried_again_by_building_but_not_by_opening(
    folder: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as busy:
        busy.setattr(
            DecodingSandbox, "probe", lambda self, path: RejectedFile("timeout", "not decoded after 30 seconds")
        )
        with pytest.raises(DataError, match="timeout 7"):
            build(folder, 1.0)
    with pytest.raises(DataError, match="timeout 7"):
        open_index(DataConfig(root=str(folder), max_bad_fraction=1.0))
    assert not probed
    assert len(build(folder, 1.0).videos) == 6 and len(probed) == 7


def test_a_new_class_folder_renumbers_the_labels(folder: Path, video: Path, probed: list[str]) -> None:
    build(folder, 1.0)
    (folder / "a").mkdir()
    shutil.copy(video, folder / "a" / "x.mp4")
    index = build(folder, 1.0)
    assert index.classes == ("a", "b one", "two")
    labels = {record.path.partition("/")[0]: record.label for record in index.videos}
    assert labels == {"a": 0, "b one": 1, "two": 2, "free.mp4": None}


def test_other_labels_or_classes_of_the_same_files_are_another_index(folder: Path, probed: list[str]) -> None:
    """Nothing is decoded again for them, and nothing of the index before is left."""
    path = folder / "list.csv"
    for labels, classes, numbers in (
        (("dog", "cat", "cat"), ("cat", "dog"), [1, 0, 0]),
        (("dog", "cat", "dog"), ("cat", "dog"), [1, 0, 1]),
        (("wolf", "cat", "wolf"), ("cat", "wolf"), [1, 0, 1]),
    ):
        rows = zip(("free.mp4", "two/a.mp4", "two/x.mp4"), labels, strict=True)
        path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
        index = build(path)
        assert index.classes == classes and [record.label for record in index.videos] == numbers
    assert len(probed) == 3


def test_annotations_that_name_more_than_before_are_counted_anew(folder: Path, probed: list[str]) -> None:
    rows = "label,youtube_id\none,a\ntwo,x\n"
    for more, missing in (("", 0), ("two,gone\n", 1), ("two,gone\none,lost\n", 2)):
        (folder / "rows.csv").write_text(rows.replace("one", "two") + more.replace("one", "two"))
        index = build_index(DataConfig(root=str(folder / "two"), annotations=str(folder / "rows.csv")))
        assert index.missing == missing and len(index.videos) == 2
    assert sorted(probed) == ["a.mp4", "x.mp4"]


def test_any_number_of_processes_gives_the_same_index(folder: Path) -> None:
    one = build(folder, 1.0, processes=1)
    (folder / INDEX_NAME).unlink()
    assert build(folder, 1.0, processes=3) == one


def test_progress_counts_every_file(folder: Path, probed: list[str]) -> None:
    steps: list[tuple[int, int]] = []
    build(folder, 1.0, on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 7) for done in range(1, 8)]


def test_an_interrupted_build_keeps_the_old_index_and_continues(folder: Path, probed: list[str]) -> None:
    build(folder, 1.0)
    before = (folder / INDEX_NAME).read_bytes()
    for name in ("free.mp4", "two/a.mp4", "two/x.mp4"):
        os.utime(folder / name, ns=(1, 1))
    probed.clear()

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(folder, 1.0, on_progress=stop)
    assert (folder / INDEX_NAME).read_bytes() == before
    assert len(probed) <= 3  # those that had not begun yet are called off
    probed.clear()
    index = build(folder, 1.0)
    assert len(probed) == 2 and len(index.videos) == 6


def test_what_a_kill_has_left_is_in_no_report(folder: Path, probed: list[str]) -> None:
    build(folder, 1.0)
    whole = {name: (folder / name).read_bytes() for name in (INDEX_NAME, REPORT_NAME)}
    for name in (f".{INDEX_NAME}.0123abcd.part", "two/.x.mp4.0123abcd.part"):
        (folder / name).touch()
    (folder / INDEX_NAME).unlink()
    build(folder, 1.0)
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "format", "numbers", "labels"])
def test_a_damaged_index_is_refused_by_loading_and_replaced_by_building(
    folder: Path, probed: list[str], damage: str
) -> None:
    whole, path = tuple(build(folder, 1.0).videos), folder / INDEX_NAME
    columns, content, header = load_file(path), path.read_bytes(), read_metadata(path)
    if damage == "numbers":
        columns["numbers"] = columns["numbers"][:-1]
    if damage == "labels":
        columns["labels"][2] = 7
    if damage == "format":
        header["magi_index"] = header["magi_index"].replace(f'"format": {FORMAT}', '"format": 99')
    contents = {"empty": b"", "text": b"this is no index", "cut": content[:-9]}
    path.write_bytes(contents[damage] if damage in contents else save(columns, header))
    with pytest.raises(DataError, match=r"damaged .* delete it and run 'magi data index "):
        load_index(Source.of(folder))
    assert tuple(build(folder, 1.0).videos) == whole and len(probed) == 7


def test_a_row_that_points_nowhere_is_an_error_when_it_is_read(folder: Path, probed: list[str]) -> None:
    build(folder, 1.0)
    path = folder / INDEX_NAME
    columns, metadata = load_file(path), read_metadata(path)
    columns["numbers"] = columns["numbers"].copy()
    columns["numbers"][2, NUMBERS.index("path_end")] = 1 << 40
    columns["numbers"][3, NUMBERS.index("path_end")] = columns["numbers"][3, NUMBERS.index("path")]
    path.write_bytes(save(columns, metadata))
    index = load_index(Source.of(folder))
    assert index.videos[1].path == "b one/x.mp4"
    for number in (2, 3):
        with pytest.raises(DataError, match=r"magi-index\.safetensors: damaged .* delete it"):
            index.videos[number]
    with pytest.raises(IndexError):
        index.videos[6]


def test_videos_of_an_older_index_and_log_are_decoded_again(folder: Path, probed: list[str]) -> None:
    """Their frames were shown in another way, and nobody asked what was sound of those that were rejected."""
    whole = tuple(build(folder, 1.0).videos)
    log = folder / ".magi-index" / "magi-index-0-of-1.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k not in ("adjusted", "clean")}) + "\n" for line in lines)
    )
    content = (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).write_bytes(content.replace(b'\\"format\\": 5', b'\\"format\\": 4'))
    assert (folder / INDEX_NAME).read_bytes() != content
    probed.clear()
    again = open_index(DataConfig(root=str(folder), max_bad_fraction=1.0))
    assert sorted(probed) == ["a.mp4", "empty.mp4", "free.mp4", "x.mp4", "x.mp4", "y.MP4", "z.mkv"]
    assert tuple(again.videos) == whole and again.skipped == 1


def test_loading_without_an_index_says_how_to_make_one(folder: Path) -> None:
    with pytest.raises(DataError, match="run 'magi data index"):
        load_index(Source.of(folder))


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path, probed: list[str]) -> None:
    (folder / INDEX_NAME).mkdir()
    with pytest.raises(DataError, match=r"cannot be read or written .* make the folder writable"):
        build(folder, 1.0)


def test_a_file_that_changes_while_it_is_read_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(self: DecodingSandbox, path: Path) -> VideoProbe:
        if path.name == "free.mp4":
            path.write_bytes(b"other")
        return VideoProbe(12, 32, 48, 25.0, None)

    monkeypatch.setattr(DecodingSandbox, "probe", probe)
    build(folder, 1.0)
    assert report(folder)["skipped_by_reason"] == {"changed_on_disk": 1}


def test_links_are_followed_but_not_in_circles(folder: Path, video: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(video, elsewhere / "l.mp4")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "two" / "up").symlink_to(folder)
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    (folder / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    listing = list_videos(Source.of(folder))
    assert listing.classes == ("b one", "linked", "two")
    paths = [file.path for file in listing.files()]
    assert len(paths) == len(set(paths)) == 10
    build(folder, 1.0)
    assert report(folder)["skipped_by_reason"] == {"unreadable": 2, "empty_file": 1}


def test_limits_reach_the_sandbox(folder: Path) -> None:
    with pytest.raises(DataError, match="too_many_pixels 6"):
        build(folder, 1.0, limits=DecodeLimits(pixels=100))


def test_a_damaged_file_counts_by_what_is_sound_of_it_where_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is the index's, and stays when a later command brings it up to date; nothing is decoded for it."""
    sound = VideoProbe(4, 32, 48, 25.0, range(6 * 512, 10 * 512, 512), adjusted=(KEPT,))
    probed = []

    def probe(self: DecodingSandbox, path: Path) -> Outcome:
        probed.append(path.name)
        if path.name == "z.mkv":
            return RejectedFile("damaged", "is damaged; 4 frames are sound", sound)
        return RejectedFile("empty_file", "has 0 bytes") if path.name == "empty.mp4" else replace(sound, adjusted=())

    monkeypatch.setattr(DecodingSandbox, "probe", probe)
    paths = [record.path for record in build(folder).videos]
    without = (folder / INDEX_NAME).read_bytes()
    assert "b one/z.mkv" not in paths and len(paths) == 5 and report(folder)["kept_stretches"] == []
    damaged = {"path": "b one/z.mkv", "reason": "damaged", "detail": "is damaged; 4 frames are sound"}
    assert damaged in report(folder)["skipped_files"]  # type: ignore[operator]

    index = build(folder, keep_clean=True)
    kept = next(record for record in index.videos if record.path == "b one/z.mkv")
    assert (kept.frames, kept.pts, kept.adjusted) == (4, sound.pts, (KEPT,)) and len(index.videos) == 6
    assert report(folder)["kept_stretches"] == [damaged] and report(folder)["skipped"] == 1 and len(probed) == 7
    assert report(folder)["adjusted"] == {KEPT: 1} and index.skipped == 1

    shutil.copy(folder / "two" / "x.mp4", folder / "two" / "more.mp4")
    assert len(build(folder).videos) == 7 and probed[7:] == ["more.mp4"]
    (folder / "two" / "more.mp4").unlink()
    build(folder, keep_clean=False)
    assert (folder / INDEX_NAME).read_bytes() == without
