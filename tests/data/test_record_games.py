"""Recordings of published games, each where its package is installed (``make test-games``)."""

import json
from pathlib import Path

import numpy as np
import pytest

from magi.cli.main import main
from magi.config import DataConfig
from magi.data.actions import video_track
from magi.data.decoding.frames import read_frames
from magi.data.index.index import open_index

GAMES = [
    ("minigrid", "minigrid:MiniGrid-DoorKey-8x8-v0", 7),
    ("ale_py", "ale_py:ALE/Freeway-v5", 3),
    ("vizdoom", "vizdoom.gymnasium_wrapper:VizdoomBasic-v1", 4),
]


@pytest.mark.parametrize(("package", "name", "actions"), GAMES, ids=[package for package, _, _ in GAMES])
def test_a_game_is_recorded_with_its_actions(
    package: str, name: str, actions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # Doom writes a file of settings where it is started
    words = ["--clips", "2", "--frames", "40", "--size", "48", "--hold", "3"]
    for folder in ("one", "again"):
        assert main(["data", "record", name, str(tmp_path / folder), *words]) == 0
    first, second = open_index(DataConfig(root=str(tmp_path / "one"))).videos
    for record in (first, second):
        path = tmp_path / "one" / record.path
        assert path.read_bytes() == (tmp_path / "again" / record.path).read_bytes(), "the same every time"
        assert len(json.loads(path.with_suffix(".json").read_text())["action_names"]) == actions
        rows_TA = video_track(path, actions, record.frames)
        assert len({*rows_TA[1:].argmax(1)}) > 1
        assert np.ptp(read_frames(path, range(record.frames), record), axis=0).max() > 50, "something moves"
    assert first.frames >= 16 and min(first.height, first.width) == 48
    assert (tmp_path / "one" / first.path).read_bytes() != (tmp_path / "one" / second.path).read_bytes()
