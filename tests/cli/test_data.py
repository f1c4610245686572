"""``magi data index`` and ``magi encode`` on trees as they come, shared out, stopped and mistaken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from magi import progress
from magi.cli.main import main
from magi.config import DataConfig
from magi.latents.dataset import LatentDataset
from tests.fakes.look_alikes import write_kinetics600, write_ucf101
from tests.fakes.numbered_videos import HEIGHT, UNEVEN_TIMES, WIDTH, write


def run(verb: str, *words: object) -> int:
    return main([*verb.split(), *map(str, words)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_ucf101(root / "ucf")
    write_kinetics600(root / "k600")
    return root


def ucf(data: Path, split: str = "trainlist01") -> list[object]:
    return [data / "ucf" / "UCF-101", "--annotations", data / "ucf" / "ucfTrainTestlist", "--split", split]


def test_index_and_encode_ucf101(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data index", *ucf(data), "--processes", 1) == 0
    assert "3 videos in 3 classes, 0 skipped" in capsys.readouterr().out
    words = ("--vae", "pixel", "--height", HEIGHT, "--width", WIDTH, "--device", "cpu")
    for worker in ("1/2", "0/2"):
        source, out, *rest = ucf(data)[0], tmp_path / "out", *ucf(data)[1:]
        assert run("encode", source, out, *rest, *words, "--worker", worker) == 0
    config = DataConfig(frames=16, height=HEIGHT, width=WIDTH, interval_max=5)
    dataset = LatentDataset(tmp_path / "out", config, 0, "pixel-8")
    assert len(dataset) == 3 and {dataset[sample].label for sample in range(3)} == {0, 1, 2}


def test_index_kinetics_by_two_workers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (data / "k600" / "train", "--annotations", data / "k600" / "annotations", "--split", "train")
    assert run("data index", *words, "--worker", "1/2") == 0
    assert "worker 1/2 is done; 3 files are with other workers" in capsys.readouterr().out
    assert run("data index", *words, "--worker", "0/2") == 3
    assert "2 of 5 videos cannot be used" in capsys.readouterr().err
    assert run("data index", *words, "--max-bad-fraction", 0.5) == 0
    out = capsys.readouterr().out
    assert "3 videos in 3 classes, 2 skipped, 1 missing" in out and "skipped 'eeeeeeeeeee_000001_000011.mp4'" in out


@pytest.mark.parametrize("output", ["utf-8:strict", "ascii"])
def test_names_that_are_no_text_are_used_whatever_the_locale(data: Path, tmp_path: Path, output: str) -> None:
    """In folders and files, indexed in one locale and encoded in another."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/v\xe9"))
    [video, *_] = sorted((data / "ucf").rglob("*.avi"))
    for name in (b"caf\xe9/\xff.avi", "caf\u00e9/x.avi".encode()):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(parents=True)
        shutil.copy(video, path)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": output}
    magi = [sys.executable, "-m", "magi", "data", "index", root]
    done = subprocess.run(magi, env=os.environ | plain, capture_output=True, check=False)
    assert done.returncode == 0 and b"2 videos in 2 classes, 0 skipped" in done.stdout, done.stderr
    words = ("--vae", "pixel", "--height", HEIGHT, "--width", WIDTH, "--device", "cpu")
    assert run("encode", root, root / "out", *words) == 0
    dataset = LatentDataset(root / "out", DataConfig(frames=2, height=HEIGHT, width=WIDTH), 0, "pixel-8")
    assert [label in dataset.classes for label in ("caf\udce9", "caf\u00e9")] == [True, True] and dataset[0].label in (
        0,
        1,
    )


def test_what_is_worth_a_line_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "slow.mkv", times=[40 * number for number in range(9)], count=9)
    write(tmp_path / "fast.mkv", times=[20 * number for number in range(9)], count=9)
    write(tmp_path / "uneven.mkv", times=UNEVEN_TIMES, prepare=lambda stream: stream.set_display_rotation(90))
    (tmp_path / "old.wmv").touch()
    assert run("data index", tmp_path, "--seconds-per-file", 60) == 0
    out = capsys.readouterr().out
    assert "frames a second: 25 to 50, median 31.6; 1 videos of a variable rate" in out
    assert "shown as players do: 1 turned or mirrored" in out and "ignored 1 .wmv: types that are not read" in out
    assert run("data index", tmp_path, "--seconds-per-file", 0) == 2
    assert "expected more than 0" in capsys.readouterr().err


def test_encoding_at_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    write(tmp_path / "videos" / "a.mkv", times=[20 * number for number in range(90)])
    words = ("--vae", "pixel", "--height", HEIGHT, "--width", WIDTH, "--device", "cpu", "--fps", 12.5)
    assert run("encode", tmp_path / "videos", tmp_path / "out", *words) == 0
    assert "--data.fps 12.5" in capsys.readouterr().out
    config = DataConfig(frames=4, height=HEIGHT, width=WIDTH, interval_max=2, fps=12.5)
    dataset = LatentDataset(tmp_path / "out", config, 0, "pixel-8")
    assert json.loads((tmp_path / "out" / "shard-00000.jsonl").read_text().splitlines()[1])["frames"] == 23
    assert dataset[0].latents_TCHW.shape == (4, 192, HEIGHT // 8, WIDTH // 8)
    (tmp_path / "videos" / "a.actions.csv").write_text("0,1\n" * 90)
    assert run("encode", tmp_path / "videos", tmp_path / "other", *words) == 2
    assert "--fps: actions are a row a stored frame" in capsys.readouterr().err


def test_a_list_can_be_trained_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.jsonl"
    rows = [{"path": str(file), "label": "x"} for file in sorted((data / "k600" / "val").glob("*/*.m*"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("data index", path) == 0
    assert "2 videos in 1 classes, 0 skipped" in capsys.readouterr().out
    settings = ["--data.root", path, "--vae.name", "pixel", "--vae.weights=", "--model.classes", 1]
    assert run("train digits --dry-run", *settings) == 0
    out = capsys.readouterr().out
    assert "# data      2 videos, 1 classes" in out and "not ready" not in out


MISTAKES = [
    ("data index {ucf} --worker 5/4", "--worker 5/4: expected i/N with 0 <= i < N, as in 0/4"),
    ("data index {ucf} --processes -1", "--processes -1: expected 0"),
    ("data index {ucf} --split trainlist01", "is a folder, and only a list or data.annotations have splits"),
    ("data index {ucf} --annotations {lists}", "data.split is empty"),
    ("data index {ucf} --annotations {lists} --split trainlist07", "trainlist07.txt: no such split file"),
    ("data index {ucf} --annotations nowhere --split x", "data.annotations nowhere: no such file or folder"),
    ("data index nowhere.csv", "nowhere.csv: no such list"),
    ("encode {ucf} {out} --vae pixel --worker 1/2", "no index; before several workers run 'magi data index {ucf}'"),
    (
        "encode {ucf} {out} --annotations {lists} --split trainlist02 --vae pixel --worker 1/2",
        "run 'magi data index {ucf} --annotations {lists} --split trainlist02'",
    ),
    ("data index {ucf} --annotations {lists}/trainlist01.txt --split x", "is one split file; name its folder"),
    ("encode {ucf} {ucf} --vae pixel", "is the folder of the videos"),
    ("encode {ucf} {out} --vae pixel --worker 5/4", "--worker 5/4: expected i/N"),
    ("encode {ucf} {out} --vae pixel --height 60", "divisible by the autoencoder's stride 8"),
    ("encode {ucf} {out} --vae cosmos", "cosmos: name the weights too"),
    ("encode {ucf} {out} --vae pixel --interval-min 9 --interval-max 3", "interval_max 3 is below interval_min 9"),
    ("encode {ucf} {out} --vae pixel --clips-per-video 0 --device cpu", "must be positive"),
    ("encode {ucf} {out} --vae pixel --dtype float8", "float8"),
]


@pytest.mark.parametrize(("command", "line"), MISTAKES, ids=lambda value: value[:60])
def test_a_mistake_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, line: str
) -> None:
    places = {"ucf": data / "ucf" / "UCF-101", "lists": data / "ucf" / "ucfTrainTestlist", "out": tmp_path / "out"}
    assert main(command.format(**places).split()) == 2
    said = capsys.readouterr().err
    assert said.count("magi: error:") == 1 and line.format(**places) in said, said


def test_the_end_of_a_work_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one worker's as of another's: its share is known at its end alone."""
    with progress.progress("encoding videos", "videos") as report:
        for done, total in ((9, 11), (11, 11), (11, 11)):
            report(done, total)
    assert capsys.readouterr().err.count("\n") == 1


def test_progress_tells_the_rate_of_this_call_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier call has done is not counted as speed."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("decoding videos", "videos") as report:
        for seconds, done in ((1.0, 401), (10.0, 500), (200.0, 1000)):
            clock[0] = seconds
            report(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "decoding videos: 500/1000 videos, 10 a second, 50 s left",
        "decoding videos: 1000/1000 videos, 3 a second, 0 h 3 min",
    ]


def test_digits_with_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tmp_path, "--captions", "--combinations", "held-out", "--clips", 2)
    assert run("data digits", *words) == 0 and run("data digits", *words) == 0
    assert "0 videos written, 2 were there" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/*.txt"))) == 2
    assert json.loads((tmp_path / "1" / "1_00001.json").read_text())["frames"] == 16
    assert run("data digits", tmp_path / "two", "--captions", "--glyphs", 2, "--clips", 1) == 0
    assert len(json.loads((tmp_path / "two" / "0" / "0_00000.json").read_text())["attributes"]) == 2
    for more, message in (
        (("--captions", "--glyphs", 3), "--glyphs 3: captions are of one digit or two"),
        (("--combinations", "held-out"), "--combinations held-out: only with --captions"),
    ):
        assert run("data digits", tmp_path / "other", *more) == 2
        assert message in capsys.readouterr().err
