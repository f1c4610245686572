"""LeRobot datasets of both versions, written here with pyarrow: actions lead to their frames; damage is named."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from magi.cli.main import main
from magi.config import DataConfig
from magi.data.actions import video_track
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index
from magi.data.lerobot import Dataset, import_lerobot
from magi.data.video_writer import write_mp4
from magi.errors import DataError

CAMERA, FPS, LENGTHS = "observation.images.top", 10, (20, 17, 24)
KEYS = [np.random.default_rng(number).integers(0, 3, frames) for number, frames in enumerate(LENGTHS)]
"""What is pressed at each frame: it makes the next one as bright as it says."""


def shown(keys_T: np.ndarray) -> np.ndarray:
    grey_T = np.concatenate([[0], 60 * (keys_T[:-1] + 1)]).astype(np.uint8)
    return np.broadcast_to(grey_T[:, None, None, None], (len(keys_T), 32, 48, 3))


def vector(keys_T: np.ndarray) -> list[Any]:
    return np.eye(3)[keys_T].tolist()


def write_table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def write_info(root: Path, version: str, discrete: bool, **changes: Any) -> None:
    action = {"dtype": "int64", "shape": [1]} if discrete else {"dtype": "float32", "shape": [3]}
    features = {CAMERA: {"dtype": "video", "shape": [32, 48, 3]}, "action": action}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    info = {"codebase_version": version, "fps": FPS, "features": features} | changes
    (root / "meta" / "info.json").write_text(json.dumps(info))


def rows(number: int, discrete: bool) -> dict[str, list[Any]]:
    frames = LENGTHS[number]
    return {
        "action": KEYS[number].tolist() if discrete else vector(KEYS[number]),
        "timestamp": [frame / FPS for frame in range(frames)],
        "frame_index": list(range(frames)),
        "episode_index": [number] * frames,
    }


def write_v2(root: Path, discrete: bool = False) -> Path:
    """A file an episode; the version that it claims is wrong, as is seen on the hub."""
    write_info(root, "v3.0", discrete)
    for number, keys_T in enumerate(KEYS):
        name = f"episode_{number:06d}"
        write_table(root / f"data/chunk-000/{name}.parquet", **rows(number, discrete))
        write_mp4(root / f"videos/chunk-000/{CAMERA}/{name}.mp4", shown(keys_T), FPS)
    return root


def write_v3(root: Path, discrete: bool = False) -> Path:
    """All episodes in one file."""
    write_info(root, "v3.0", discrete)
    tables = [rows(number, discrete) for number in range(3)]
    write_table(root / "data/chunk-000/file-000.parquet", **{
        name: [value for table in tables for value in table[name]] for name in tables[0]
    })  # fmt: skip
    write_mp4(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", np.concatenate([shown(keys_T) for keys_T in KEYS]), FPS)
    video = {f"videos/{CAMERA}/{name}": [0] * 3 for name in ("chunk_index", "file_index")}
    starts = (np.cumsum(LENGTHS) - LENGTHS) / FPS
    write_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        **{"episode_index": [0, 1, 2], "data/chunk_index": [0] * 3, "data/file_index": [0] * 3},
        **video,
        **{f"videos/{CAMERA}/from_timestamp": starts.tolist()},
    )
    return root


@pytest.mark.parametrize("write", [write_v2, write_v3])
@pytest.mark.parametrize("discrete", [False, True])
def test_an_action_leads_to_the_frame_after_it(write: Any, discrete: bool, tmp_path: Path) -> None:
    source, out = write(tmp_path / "source", discrete), tmp_path / "out"
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert main(["data", "import-lerobot", str(source), str(out), "--size", "0"]) == 0
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}, "the source stays"
    videos = open_index(DataConfig(root=str(out))).videos
    assert [video.frames for video in videos] == list(LENGTHS)
    for keys_T, video in zip(KEYS, videos, strict=True):
        rows_TA = video_track(out / video.path, 3, video.frames)
        assert np.isnan(rows_TA[0]).all() and (rows_TA[1:].argmax(1) == keys_T[:-1]).all()
        grey_T = read_frames(out / video.path, range(video.frames), video).mean((1, 2, 3))
        assert np.abs(grey_T[1:] - 60 * (rows_TA[1:].argmax(1) + 1)).max() < 4
    assert json.loads((out / "episode_000001.json").read_text()).get("action_names") == (
        ["0", "1", "2"] if discrete else None
    )
    (out / "episode_000001.json").unlink()
    assert import_lerobot(Dataset.opened(source, "", "action"), out, 0) == (1, []), "what is there is kept"
    with pytest.raises(ValueError, match="has size 0, asked 16; choose another folder"):
        import_lerobot(Dataset.opened(source, "", "action"), out, 16)


def drop_video(root: Path) -> None:
    next(root.glob("videos/*/*/*_000001.mp4")).unlink()


def cut_video(root: Path) -> None:
    write_mp4(root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", shown(KEYS[1])[:9], FPS)


def slow_video(root: Path) -> None:
    write_mp4(root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", shown(KEYS[1]), 2 * FPS)


def spoil_actions(root: Path) -> None:
    columns = rows(1, False)
    columns["action"][4] = [0.0, float("nan"), 1.0]
    write_table(root / "data/chunk-000/episode_000001.parquet", **columns)


def misalign(root: Path) -> None:
    write_table(root / "data/chunk-000/episode_000001.parquet", **rows(1, False) | {"frame_index": [3, *range(1, 17)]})


def damage_table(root: Path) -> None:
    (root / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1 or not")


def drop_column(root: Path) -> None:
    columns = rows(1, False)
    del columns["action"]
    write_table(root / "data/chunk-000/episode_000001.parquet", **columns)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_video, "No such file"),
        (cut_video, "9 frames; episode 1 ends at 17"),
        (slow_video, "20 frames a second, but the dataset has 10"),
        (spoil_actions, "action of episode 1: action 4 is not finite"),
        (misalign, "episode 1 has no frames 0, 1, 2"),
        (damage_table, "no table of episode_index, frame_index, action"),
        (drop_column, "no table of episode_index, frame_index, action"),
    ],
)
def test_an_episode_that_cannot_be_used_is_named_and_left_out(damage: Any, said: str, tmp_path: Path) -> None:
    source = write_v2(tmp_path / "source")
    damage(source)
    dataset = Dataset.opened(source, "", "action")
    with pytest.raises(DataError, match=r"1 of 3 episodes cannot be used, more than max_bad_fraction 0.01; the first"):
        import_lerobot(dataset, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    written, reasons = import_lerobot(dataset, tmp_path / "out", max_bad_fraction=0.5)
    assert written == 2 and len(reasons) == 1 and said in reasons[0] and "\n" not in reasons[0]
    assert [path.stem for path in sorted((tmp_path / "out").glob("*.mp4"))] == ["episode_000000", "episode_000002"]


def test_what_is_no_dataset_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no description of a LeRobot dataset"):
        Dataset.opened(tmp_path, "", "action")
    write_info(tmp_path, "v2.1", False)
    with pytest.raises(DataError, match="no episodes; expected meta/episodes"):
        Dataset.opened(tmp_path, "", "action").episodes()
    with pytest.raises(ValueError, match=r"--camera 'front': expected one of \['observation.images.top'\]"):
        Dataset.opened(tmp_path, "front", "action")
    with pytest.raises(ValueError, match=r"--column 'keys': expected a column of actions, such as \['action'\]"):
        Dataset.opened(tmp_path, "", "keys")
    write_info(tmp_path, "v2.1", False, features={"action": {"dtype": "float32", "shape": [2]}})
    with pytest.raises(ValueError, match=r"--camera '': expected one of \[\], those that are stored as video"):
        Dataset.opened(tmp_path, "", "action")
    write_info(tmp_path, "v2.1", False, fps=0)
    with pytest.raises(DataError, match="fps 0"):
        Dataset.opened(tmp_path, "", "action")
    source = write_v3(tmp_path / "v3")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"read with pyarrow; pip install -e '.\[lerobot\]'"):
        Dataset.opened(source, "", "action").episodes()
