"""Action tracks in every form they come in, the actions between frames, and one line for each thing that is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from magi.config import DataConfig
from magi.data.actions import (
    actions_between,
    count_actions,
    found_actions,
    pooled,
    read_track,
    track_path,
    with_actions,
)
from magi.data.clips import ClipDataset
from magi.data.index.index import build_index
from magi.data.video_writer import write_mp4
from magi.data.worlds.worlds import find_world, play_clip, write_world
from magi.errors import DataError

NONE, LEFT, RIGHT = [float("nan")] * 2, [1.0, 0.0], [0.0, 1.0]


def same(rows: np.ndarray, expected: list[list[float]]) -> None:
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.actions.csv", "0\n1\n-1\n0\n"),
        ("v.actions.csv", "action\n0\n1\n-1\n0\n"),
        ("v.actions.csv", "1,0\n0,1\n,\n1,0\n"),
        ("v.actions.csv", "left,right\n1,0\n0,1\n,\n1,0\n"),
        ("v.actions.jsonl", "0\n1\nnull\n0\n"),
        ("v.actions.jsonl", "[1, 0]\n[0, 1.0]\nnull\n[1, 0]\n"),
        ("v.json", json.dumps({"actions": [0, 1, None, 0], "action_names": ["left", "right"]})),
    ],
)
def test_a_text_track_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert track_path(tmp_path / "v.mp4") == tmp_path / name
    same(read_track(tmp_path / name, 2, 4), [LEFT, RIGHT, NONE, LEFT])
    same(read_track(tmp_path / name, 2, 2), [LEFT, RIGHT])


@pytest.mark.parametrize("dtype", ["int8", "int64", "float32"])
def test_an_array_is_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "v.actions.npy", np.array([0, 1, -1, 0], dtype))
    same(read_track(tmp_path / "v.actions.npy", 2), [LEFT, RIGHT, NONE, LEFT])
    np.save(tmp_path / "w.actions.npy", np.array([[1, 0], [0, 1]], dtype))
    same(read_track(tmp_path / "w.actions.npy", 2), [LEFT, RIGHT])


def test_a_sidecar_without_actions_is_no_track(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('{"glyph": 3}')
    assert track_path(tmp_path / "v.mp4") is None
    np.save(tmp_path / "v.actions.npy", np.zeros(3, int))
    assert track_path(tmp_path / "v.mp4") == tmp_path / "v.actions.npy"


def test_a_track_says_how_many_actions_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"actions": [0], "action_names": ["a", "b", "c"]}')
    np.save(tmp_path / "b.actions.npy", np.zeros((3, 5)))
    np.save(tmp_path / "c.actions.npy", np.zeros(3, int))
    assert count_actions(tmp_path / "a.json") == 3 and count_actions(tmp_path / "b.actions.npy") == 5
    with pytest.raises(DataError, match="say how many kinds there are with --actions"):
        count_actions(tmp_path / "c.actions.npy")


BAD = {
    "v.actions.csv": ["", "left\nright\n", "0\n1,0\n", "0\n2\n", "0\n0.5\n", "0\n-2\n", "0\nnan,1\n", "1,nan\n0,1\n",
                      "1,0,0\n1,0,0\n", "inf\n0\n", "0\n"],
    "v.actions.jsonl": ["{}\n1\n", "[[1]]\n[[0]]\n", '"a"\n1\n', "1\n[1, 0]\n", "[" * 10_000, "\xff"],
    "v.json": ['{"actions": 3}', '{"actions": ["left", "right"]}', '{"actions": []}', "[]", '{"actions": {"a": 1}}'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_track_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=name) as error:
        read_track(tmp_path / name, 2, 2)
    assert "\n" not in str(error.value)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "v.actions.npy", np.array([{}, {}], object), allow_pickle=True)
    with pytest.raises(DataError, match="no track of actions"):
        read_track(tmp_path / "v.actions.npy", 2)


def test_a_clip_has_the_actions_that_led_to_its_frames() -> None:
    rows_FA = np.arange(20, dtype=np.float32).reshape(10, 2)  # the action into frame f is (2f, 2f + 1)
    same(actions_between(rows_FA, 3, 3, 1), [NONE, [8, 9], [10, 11]])
    same(actions_between(rows_FA, 1, 3, 2), [NONE, [5, 6], [9, 10]])  # means of frames 2 and 3, of 4 and 5
    rows_FA[2] = np.nan
    same(actions_between(rows_FA, 1, 3, 2), [NONE, [6, 7], [9, 10]])
    rows_FA[3] = np.nan
    same(actions_between(rows_FA, 1, 2, 2), [NONE, NONE])
    same(actions_between(rows_FA, 9, 1, 25), [NONE])


def test_latent_frames_have_the_mean_of_their_frames() -> None:
    rows_TA = np.array([NONE, *([float(t), 1] for t in range(1, 9))], np.float32)
    same(pooled(rows_TA, 9), rows_TA.tolist())
    same(pooled(rows_TA, 3), [NONE, [2.5, 1], [6.5, 1]])
    same(pooled(rows_TA[:1], 1), [NONE])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(find_world("platform"), folder, clips=4, frames=12)
    return folder


def test_clips_of_a_world_have_its_actions(world: Path) -> None:
    config = DataConfig(root=str(world), frames=5, height=16, width=16, interval_min=2, interval_max=2, workers=0)
    index = build_index(config)
    assert found_actions(index) == 6
    dataset = ClipDataset(index, config, 0, actions=6)
    for sample in range(8):
        draw, clip = dataset.draws.draw(sample), dataset[sample]
        number = int(Path(index.videos[draw.video].path).stem.rpartition("_")[2])
        actions, _ = play_clip(find_world("platform"), 0, number, 12)
        expected_TA = np.zeros((4, 6), np.float32)
        for t in range(4):
            for frame in (draw.start + 2 * t + 1, draw.start + 2 * t + 2):
                expected_TA[t, actions[frame]] += 0.5
        assert clip.actions_TA is not None and np.isnan(clip.actions_TA[0]).all()
        np.testing.assert_array_equal(clip.actions_TA[1:], expected_TA)
    assert ClipDataset(index, config, 0)[0].actions_TA is None


def test_videos_without_usable_actions_are_left_out_and_named(tmp_path: Path) -> None:
    for number in range(4):
        write_mp4(tmp_path / f"v{number}.mp4", np.full((6, 16, 16, 3), 40 * number, np.uint8), 10)
        np.save(tmp_path / f"v{number}.actions.npy", np.zeros(6, int))
    np.save(tmp_path / "v1.actions.npy", np.zeros(5, int))
    (tmp_path / "v3.actions.npy").unlink()
    index = build_index(DataConfig(root=str(tmp_path), workers=0))
    left, reasons = with_actions(index, 2, max_bad_fraction=0.5)
    assert [record.path for record in left.videos] == ["v0.mp4", "v2.mp4"] and left.skipped == 2
    assert left.frame_counts().tolist() == [6, 6]
    assert "actions of 5 frames, but the video has 6" in reasons[0] and "v3.mp4: no actions beside it" in reasons[1]
    with pytest.raises(DataError, match=r"2 of 4 videos have no usable actions, more than max_bad_fraction 0.4"):
        with_actions(index, 2, max_bad_fraction=0.4)
