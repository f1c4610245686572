"""The work of an index survives a kill, is shared without talking, and takes no memory to speak of."""

import contextlib
import gc
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from magi.data.decoding.frames import Skip, VideoProbe
from magi.data.decoding.sandbox import DecodeJail, probe_from_json, probe_to_json
from magi.data.index import parts
from magi.data.index.index import VideoIndex, build_index, index_share, load_index
from magi.data.index.parts import blocks, read_part
from magi.data.index.records import Entry, IndexHeader, entry_to_line, header_to_line
from magi.data.index.sources import ListedFile, Source
from magi.errors import DataError


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jail is replaced: files are not decoded, their names are noted."""
    names: list[str] = []

    def probe(self: DecodeJail, path: Path) -> VideoProbe | Skip:
        names.append(path.name)
        if path.stem.endswith("7"):
            return Skip("decode_error", "is bad")
        return VideoProbe(12, 32, 48, 25.0, range(0, 12 * 512, 512))

    monkeypatch.setattr(DecodeJail, "probe", probe)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A thousand files that are not opened."""
    for number in range(1000):
        path = tmp_path / "videos" / f"c{number % 7}" / f"{number:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def listed(count: int) -> list[ListedFile]:
    return [ListedFile(f"a/{number:06d}.mp4", 10, 20, 0) for number in range(count)]


def test_blocks_are_about_a_hundred_files_and_a_new_file_moves_one_of_them() -> None:
    all_files = listed(20_000)
    before = {block.digest: block.files for block in blocks(all_files)}
    assert [file for files in before.values() for file in files] == all_files
    assert 120 < len(before) < 280 and max(map(len, before.values())) <= 400
    more = [*all_files[:9000], ListedFile("a/008999b.mp4", 1, 2, 0), *all_files[9000:]]
    after = {block.digest for block in blocks(more)}
    assert len(after - set(before)) <= 3


def test_workers_share_the_work_and_the_last_one_writes_the_index(folder: Path, probed: list[str]) -> None:
    alone = shutil.copytree(folder, folder.parent / "alone", copy_function=shutil.copy2)
    expected = build_index(alone, 1.0)
    probed.clear()
    shares = []
    for worker in (2, 0, 1):
        shares.append(index_share(Source.of(folder), (worker, 3), 1.0))
        assert len(probed) == len(set(probed))
    assert [share.index is None for share in shares] == [True, True, False]
    assert shares[0].missing_parts > shares[1].missing_parts > 0 and len(probed) == 1000
    assert tuple(load_index(Source.of(folder)).videos) == tuple(expected.videos)
    assert not list(folder.glob(".magi*"))
    again = index_share(Source.of(folder), (1, 3), 1.0)
    assert again.index is not None and len(probed) == 1000


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_worker_is_done_once_though_its_share_is_an_estimate(folder: Path, worker: int) -> None:
    steps: list[tuple[int, int]] = []
    index_share(Source.of(folder), (worker, 3), 1.0, lambda done, total: steps.append((done, total)))
    assert [step for step in steps if step[0] >= step[1]] == steps[-1:] and steps[-1][0] == len(steps) - 1


@pytest.mark.parametrize("worker", [(2, 2), (-1, 2), (5, 4)])
def test_an_impossible_worker_is_refused(folder: Path, worker: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected i/N with i from 0 to N - 1"):
        index_share(Source.of(folder), worker)


def test_a_killed_index_continues_and_ends_with_the_same_bytes(
    folder: Path, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at moments spread over the work; a file is decoded again only if it was under way."""
    build_index(folder, 1.0)
    index = Source.of(folder).index_path
    whole = index.read_bytes()
    index.unlink()
    probe = DecodeJail.probe
    with monkeypatch.context() as slowly:
        slowly.setattr(DecodeJail, "probe", lambda self, path: (time.sleep(0.001), probe(self, path))[1])
        for seconds in (0.15, 0.3, 0.45):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    build_index(folder, 1.0)
                os._exit(0)
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    probed.clear()
    before = {entry.file.path for part in Source.of(folder).parts_path.iterdir() for entry in read_part(part)}
    build_index(folder, 1.0)
    assert index.read_bytes() == whole
    assert before and len(probed) == 1000 - len(before)


def test_lines_that_a_kill_has_cut_are_written_again(folder: Path, probed: list[str]) -> None:
    source = Source.of(folder)
    assert index_share(source, (0, 2), 1.0).index is None
    part = max(source.parts_path.iterdir(), key=lambda path: path.stat().st_size)
    lines = part.read_bytes()
    part.write_bytes(lines[:-30])
    probed.clear()
    assert index_share(source, (0, 2), 1.0).index is None and len(probed) == 1
    assert len(read_part(part)) == lines.count(b"\n")
    part.write_bytes(b"\xff\x00nonsense\n{}\n[]\n" + lines[: lines.find(b"\n") + 1] * 3)
    assert len(read_part(part)) == 1


def test_a_worker_whose_listing_is_older_does_not_harm_the_others(folder: Path) -> None:
    source = Source.of(folder)
    index_share(source, (0, 2), 1.0)
    (folder / "c3" / "0500b.mp4").touch()
    index_share(source, (1, 2), 1.0)
    share = index_share(source, (0, 2), 1.0)
    assert share.index is not None and len(share.index.videos) + share.index.skipped == 1001


def write_fake_index(root: Path, count: int) -> None:
    """An index of files that are not there, half of them with a variable rate."""
    rates = np.random.default_rng(0)
    probes = [
        VideoProbe(300, 240, 320, 25.0, tuple(np.cumsum(rates.integers(1, 999, 300)).tolist()) if odd else range(300))
        for odd in (False, True)
    ]
    with open(Source.of(root).index_path, "w", encoding="utf-8") as file:
        file.write(header_to_line(IndexHeader(("a",), 0)) + "\n")
        texts = [entry_to_line(Entry(listed(1)[0], probe)) + "\n" for probe in probes]
        for number in range(count):
            file.write(texts[number % 2].replace("000000", f"{number:06d}"))


def growth(work: Callable[[], object]) -> int:
    """Bytes by which ``work`` makes a process grow at most, told by one that does nothing else."""
    gc.collect()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            kept = work()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(write, str(1024 * (after - before)).encode() if kept is not None else b"")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read, "rb") as pipe:
        return int(pipe.read())


def test_200_000_videos_are_held_in_a_few_bytes_each(tmp_path: Path) -> None:
    """No record and no table of time stamps is kept: 28 bytes a video, and twice that while the index is read."""
    count = 200_000
    write_fake_index(tmp_path, count)

    def load() -> VideoIndex:
        index = load_index(Source.of(tmp_path))
        assert len(index.videos) == count and len(index.frame_counts()) == count
        assert index.videos[199_999].path == "a/199999.mp4" and isinstance(index.videos[199_999].pts, tuple)
        return index

    assert growth(load) < 96 * count


def test_indexing_holds_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 300 bytes a file beside what one block needs: no file, outcome or line of a listing is kept."""
    monkeypatch.setattr(ListedFile, "of", classmethod(lambda cls, root, path, label=None: cls(path, 10, 20, label)))
    count = 15_000
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"videos/{n:09d}.mp4,x\n" for n in range(count)))
    assert growth(lambda: build_index(tmp_path / "list.csv", 1.0)) < 300 * count + 4_000_000
    assert len(load_index(Source.of(tmp_path / "list.csv")).videos) == count - count // 10


def test_records_are_read_from_the_file_that_was_opened(tmp_path: Path) -> None:
    write_fake_index(tmp_path, 3)
    index = load_index(Source.of(tmp_path))
    path, records = Source.of(tmp_path).index_path, tuple(index.videos)
    copied = pickle.loads(pickle.dumps(index.videos))
    assert tuple(copied) == records and index.videos == copied and index.videos != copied[:2]
    path.rename(tmp_path / "old")
    path.write_bytes(b"another")
    assert tuple(index.videos) == records
    with pytest.raises(DataError, match="has been replaced since it was opened"):
        pickle.loads(pickle.dumps(index.videos))
    (tmp_path / "old").write_bytes((tmp_path / "old").read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        index.videos[2]


@pytest.mark.parametrize(
    "pts",
    [None, range(5, 5 + 40 * 512, 512), tuple(n * n + 7 for n in range(40)), (-(2**40), *range(1, 40))],
)
def test_time_stamps_come_back(pts: range | tuple[int, ...] | None) -> None:
    probe = VideoProbe(40, 32, 48, 25.0, pts)
    assert probe_from_json(probe_to_json(probe)) == probe


@pytest.mark.parametrize(
    "pts",
    ["from the end", 7, {"start": 0}, {"start": 0, "packed_steps": "!"}, {"start": 0, "packed_steps": "AAAA"}, [1, 2]],
)
def test_damaged_time_stamps_are_refused(pts: object) -> None:
    values = probe_to_json(VideoProbe(40, 32, 48, 25.0, None)) | {"pts": pts}
    with pytest.raises((ValueError, TypeError, KeyError)):
        probe_from_json(values)


def test_part_of_a_stranger_is_not_believed(folder: Path) -> None:
    """A part counts by the files of its own block: other lines in it make nothing whole."""
    source = Source.of(folder)
    block = next(blocks(listed(3)))
    part = block.part(source.parts_path)
    part.parent.mkdir()
    part.write_text(entry_to_line(Entry(listed(1)[0], Skip("x", "y"))) + "\n")
    names = parts.Parts(folder, source.parts_path, parts.DecodeLimits(), 1).missing(
        [parts.PartName(part, len(block.files))]
    )
    assert len(names) == 1
