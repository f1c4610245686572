"""The work of an index survives a kill, is shared without talking, and takes no memory to speak of."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from magi.config import DataConfig
from magi.data.decoding.frames import VideoProbe
from magi.data.decoding.probe import Outcome, RejectedFile
from magi.data.decoding.sandbox import DecodingSandbox
from magi.data.index.index import IndexShare, VideoIndex, build_index, index_share, load_index
from magi.data.index.outcome_log import LOG_FOLDER, OutcomeLog, all_logs, from_line, log_path, to_line
from magi.data.index.sources import ListedFile, Source
from tests.fakes.memory import growth


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sandbox is replaced: files are not decoded, their names are noted."""
    names: list[str] = []

    def probe(self: DecodingSandbox, path: Path) -> Outcome:
        names.append(path.name)
        if path.stem.endswith("7"):
            return RejectedFile("decode_error", "is bad")
        return VideoProbe(12, 32, 48, 25.0, range(0, 12 * 512, 512))

    monkeypatch.setattr(DecodingSandbox, "probe", probe)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A thousand files that are not opened."""
    for number in range(1000):
        path = tmp_path / "videos" / f"c{number % 7}" / f"{number:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def build(root: Path, **settings: Any) -> VideoIndex:
    return build_index(DataConfig(root=str(root), max_bad_fraction=1.0), **settings)


def share_of(root: Path, share: tuple[int, int], **settings: Any) -> IndexShare:
    return index_share(DataConfig(root=str(root), max_bad_fraction=1.0), share, **settings)


def logged(root: Path) -> list[str]:
    """The paths in the lines of all logs that are whole."""
    paths = []
    for path in all_logs(root):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                paths.append(from_line(line)[0].path)
    return paths


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_workers_share_the_work_and_the_last_one_writes_the_index(
    folder: Path, probed: list[str], workers: int
) -> None:
    alone = shutil.copytree(folder, folder.parent / "alone", copy_function=shutil.copy2)
    build(alone)
    probed.clear()
    shares = [share_of(folder, (worker, workers)) for worker in (*range(1, workers), 0)]
    assert [share.index is None for share in shares] == [True] * (workers - 1) + [False]
    missing = [share.missing_files for share in shares]
    assert sorted(probed) == sorted(path.name for path in folder.glob("*/*.mp4"))
    assert missing == sorted(missing, reverse=True) and missing[-2] > missing[-1] == 0
    even = 1000 / workers
    steps = [before - after for before, after in zip([1000, *missing], missing, strict=False)]
    assert all(0.7 * even < step < 1.3 * even for step in steps)
    assert Source.of(folder).index_path.read_bytes() == Source.of(alone).index_path.read_bytes()
    again = share_of(folder, (1, 3))
    assert again.index is not None and len(probed) == 1000


def test_another_number_of_workers_takes_up_what_is_done(folder: Path, probed: list[str]) -> None:
    share_of(folder, (1, 2))
    before = len(probed)
    assert share_of(folder, (0, 3)).index is None
    index = build(folder)
    assert 300 < before < 700 and len(probed) == len(set(probed)) == 1000
    assert len(index.videos) + index.skipped == 1000


def test_another_split_of_a_folder_decodes_no_file_again(folder: Path, probed: list[str]) -> None:
    """Splits whose names begin alike have an index each, and share what is known."""
    rows = [(f"videos/c{n % 7}/{n:04d}.mp4", "train" if n < 5 else "train_extra") for n in range(9)]
    path = folder.parent / "list.csv"
    path.write_text("path,split\n" + "".join(f"{name},{split}\n" for name, split in rows))
    one, two = (DataConfig(root=str(path), split=split, max_bad_fraction=1.0) for split in ("train", "train_extra"))
    assert [record.path for record in build_index(one).videos] == [name for name, _ in rows[:5]]
    assert [record.path for record in build_index(two).videos] == [name for name, _ in rows[5:] if "0007" not in name]
    assert len(probed) == 9
    everything = build_index(DataConfig(root=str(path), max_bad_fraction=1.0))
    assert len(everything.videos) == 8 and everything.skipped == 1 and len(probed) == 9
    assert len(load_index(Source.of(path, split="train")).videos) == 5


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_worker_is_done_once_though_its_share_is_an_estimate(folder: Path, worker: int) -> None:
    steps: list[tuple[int, int]] = []
    share_of(folder, (worker, 3), on_progress=lambda done, total: steps.append((done, total)))
    assert [step for step in steps if step[0] >= step[1]] == steps[-1:] and steps[-1][0] == len(steps) - 1


@pytest.mark.parametrize("worker", [(2, 2), (-1, 2), (5, 4)])
def test_an_impossible_worker_is_refused(folder: Path, worker: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected i/N with i from 0 to N - 1"):
        share_of(folder, worker)


def test_a_killed_index_continues_and_ends_with_the_same_bytes(
    folder: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at moments spread over the work; a file is decoded again only if it was being decoded."""
    build(folder)
    index = Source.of(folder).index_path
    complete = index.read_bytes()
    shutil.rmtree(folder / LOG_FOLDER)
    index.unlink()
    probe = DecodingSandbox.probe
    with monkeypatch.context() as slowly:
        slowly.setattr(DecodingSandbox, "probe", lambda self, path: (time.sleep(0.001), probe(self, path))[1])
        for wanted in (50, 300, 550):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    build(folder, processes=2)
                os._exit(0)
            while len(logged(folder)) < wanted:
                time.sleep(0.01)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert not index.exists()
    before = logged(folder)
    probed.clear()
    build(folder)
    assert index.read_bytes() == complete
    assert len(before) == len(set(before)) >= 550 and len(probed) == 1000 - len(before)


def test_lines_that_a_kill_has_cut_are_decoded_again(folder: Path, probed: list[str]) -> None:
    source = Source.of(folder)
    build(folder)
    complete = source.index_path.read_bytes()
    log = log_path(source, (0, 1))
    lines = log.read_bytes()
    source.index_path.unlink()
    log.write_bytes(lines[:-30])
    probed.clear()
    build(folder)
    assert len(probed) == 1 and source.index_path.read_bytes() == complete and len(logged(folder)) == 1000
    source.index_path.unlink()
    log.write_bytes(b"\xff\x00nonsense\n{}\n[]\n7\n" + lines[: lines.find(b"\n") + 1] * 3)
    probed.clear()
    build(folder)
    assert len(probed) == 999 and source.index_path.read_bytes() == complete


def test_a_worker_whose_listing_is_older_does_not_harm_the_others(folder: Path) -> None:
    share_of(folder, (0, 2))
    (folder / "c3" / "0500b.mp4").touch()
    share_of(folder, (1, 2))
    share = share_of(folder, (0, 2))
    assert share.index is not None and len(share.index.videos) + share.index.skipped == 1001


def test_an_outcome_is_of_one_content_and_the_last_word_is_what_no_other_try_can_change(tmp_path: Path) -> None:
    file, changed = ListedFile("a.mp4", 10, 20, 1), ListedFile("a.mp4", 10, 21)
    good, slow = VideoProbe(12, 32, 48, 25.0, None), RejectedFile("timeout", "too slow")
    for number, lines in enumerate(([(file, slow), (changed, slow)], [(file, good), (file, slow)])):
        (tmp_path / f"{number}.jsonl").write_bytes(b"".join(to_line(*line) for line in lines))
    for order in ([0, 1], [1, 0]):
        with OutcomeLog([tmp_path / f"{number}.jsonl" for number in order]) as log:
            assert log.knows(file.content, retry=True) and log.read(file.content, 1) == (file, good)
            assert log.knows(changed.content) and not log.knows(changed.content, retry=True)
            assert not log.knows(ListedFile("a.mp4", 11, 20).content)


def test_indexing_holds_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 600 bytes a file while the index is put together: no file, outcome or line of a listing is held."""
    monkeypatch.setattr(ListedFile, "of", classmethod(lambda cls, root, path, label=None: cls(path, 10, 20, label)))
    grown = []
    for count in (100, 15_000):
        path = tmp_path / f"{count}.csv"
        path.write_text("path,label\n" + "".join(f"videos/{n:09d}.mp4,x\n" for n in range(count)))
        grown.append(growth(lambda path=path: build(path)))  # type: ignore[misc]
        shutil.rmtree(tmp_path / LOG_FOLDER)
    assert grown[1] - grown[0] < 600 * count
    assert len(load_index(Source.of(path)).videos) == count - count // 10
