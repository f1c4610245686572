"""The clip table: distinct real clips, the same every time, each row once, and what is refused."""

from pathlib import Path

import pytest

from magi.data.index.index import VideoIndex, VideoRecord
from magi.errors import DataError
from magi.evaluation.protocol.clip_table import SETS, ClipTable, build_table, data_hash, read_table, write_table
from magi.evaluation.protocol.protocols import PROTOCOLS, EvaluationProtocol, overridden, protocol


def index_of(lengths: list[int], width: int = 320) -> VideoIndex:
    videos = [
        VideoRecord(frames, 240, width, 25.0, range(frames), f"c{k % 2}/v{k:04d}.avi", k % 2, 1000, 1)
        for k, frames in enumerate(lengths)
    ]
    return VideoIndex(Path("data"), ("c0", "c1"), tuple(videos))


def tiny(name: str, count: int) -> EvaluationProtocol:
    return overridden(protocol(name), count=count)[0]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_draws_disjoint_sets_of_its_count(name: str, tmp_path: Path) -> None:
    chosen, index = tiny(name, 12), index_of([300 + k for k in range(30)])
    table = build_table(chosen, index)
    assert table == build_table(chosen, index) and len(table.rows) == len(chosen.sets) * 12 * chosen.folds
    for fold in range(chosen.folds):
        rows = [row for kind in SETS for row in table.of(kind, fold)]
        assert len({row.place for row in rows}) == 12 * len(chosen.sets)
        assert {row.interval for row in rows} == {chosen.interval} and {row.frames for row in rows} == {chosen.frames}
    write_table(table, tmp_path / "clips.csv")
    assert read_table(tmp_path / "clips.csv", chosen, index).hash == table.hash


def test_one_window_takes_distinct_videos_at_random_places() -> None:
    table = build_table(tiny("ucf101-256-2048-s3", 40), index_of([100] * 80))
    assert len({row.video for row in table.rows}) == 80
    assert len({row.start for row in table.rows}) > 20
    assert max(row.start for row in table.rows) <= 100 - 46


def test_real_clips_are_drawn_from_all_videos_not_the_first() -> None:
    """Taking the first of a sorted list would take 16 of UCF-101's 101 classes."""
    table = build_table(tiny("ucf101-256-2048-s3", 20), index_of([100] * 400))
    for name in SETS:
        numbers = [int(row.video[-8:-4]) for row in table.of(name, 0)]
        assert min(numbers) < 100 and max(numbers) > 300 and numbers != sorted(numbers)


def test_windows_do_not_overlap_and_a_grid_spans_the_long_side() -> None:
    starts = {row.start for row in build_table(tiny("k600-64-f5-50k-larp", 20), index_of([100] * 8)).rows}
    assert starts <= set(range(0, 85, 16)) and len(starts) > 4
    grid = build_table(tiny("k600-64-f5-50k-grid", 20), index_of([100] * 8)).rows
    assert {row.crop_x for row in grid} == {0.0, 0.5, 1.0} and {row.crop_y for row in grid} == {0.5}
    assert {row.start for row in grid} == {0, 84}
    tall = build_table(tiny("k600-64-f5-50k-grid", 20), index_of([100] * 8, width=120)).rows
    assert {row.crop_y for row in tall} == {0.0, 0.5, 1.0} and {row.crop_x for row in tall} == {0.5}


def test_floor_is_of_other_videos_and_of_other_windows_only_where_they_run_out() -> None:
    """The 50,000 videos of the paper's Kinetics-600 score leave too few for a floor of as many."""
    enough = build_table(tiny("k600-64-f5-50k", 20), index_of([100] * 40))
    assert not enough.videos("real") & enough.videos("floor") and enough.shared_clips == 0
    table = build_table(tiny("k600-64-f5-50k", 20), index_of([100] * 26))
    real, floor = ({row.video: row.start for row in table.of(name, 0)} for name in SETS)
    assert len(real) == len(floor) == 20  # 20 videos each, a clip of each
    assert len(floor.keys() - real.keys()) == 6 and table.shared_clips == 14
    assert all(abs(floor[video] - real[video]) >= 16 for video in floor.keys() & real.keys())
    alone = [overridden(protocol("k600-64-f5-50k"), count=1, table_seed=seed)[0] for seed in range(40)]
    starts = [[row.start for row in build_table(one, index_of([49])).rows] for one in alone]
    assert all(abs(floor - real) >= 16 and 0 <= floor <= 33 for real, floor in starts)
    assert {floor > real for real, floor in starts} == {True, False}
    with pytest.raises(ValueError, match="6 clips of 16 frames at interval 1, k600-64-f5-50k needs 8 "):
        build_table(tiny("k600-64-f5-50k", 4), index_of([20] * 6))  # no second window fits


@pytest.mark.parametrize("name", ["ucf101-128-class-2048", "ucf101-128-class-10k", "k600-64-f5-50k-larp"])
def test_floor_of_several_clips_a_video_leaves_the_real_videos_where_others_are_as_many(name: str) -> None:
    apart = build_table(tiny(name, 12), index_of([200] * 40))
    folds = range(protocol(name).folds)
    videos = [[{row.video for row in apart.of(name, fold)} for name in SETS] for fold in folds]
    assert apart.shared_clips == 0 and not any(real & floor for real, floor in videos)
    shared = build_table(tiny(name, 24), index_of([200] * 12))
    assert len(shared.rows) == 48 * protocol(name).folds
    used = {(row.fold, row.video) for row in shared.rows if row.set == "real"}
    counted = [row for row in shared.rows if row.set == "floor" and (row.fold, row.video) in used]
    assert shared.shared_clips == len(counted) > 12


def test_random_clips_are_uniform_over_windows_and_random_windows_over_videos() -> None:
    """Of two kinds of videos with 1 and 285 windows: half of the clips each, or nearly all of the long ones."""
    index = index_of([16] * 40 + [300] * 40)

    def long(name: str) -> float:
        rows = build_table(tiny(name, 30), index).of("real", 0)
        return sum(int(row.video[-8:-4]) >= 40 for row in rows) / len(rows)

    assert 0.2 < long("ucf101-128-class-10k") < 0.8 and long("ucf101-128-class-2048") > 0.95


def test_short_videos_are_listed_not_dropped_in_silence(tmp_path: Path) -> None:
    """16 frames at interval 3 stretch over 46 frames: 45 are too few and 46 are enough."""
    table = build_table(tiny("ucf101-256-2048-s3", 2), index_of([45, 46, 46, 46, 46, 20]))
    assert table.too_short == ("c0/v0000.avi", "c1/v0005.avi")
    assert {row.start for row in table.rows} == {0}
    write_table(table, tmp_path / "clips.csv")
    assert "c1/v0005.avi" in (tmp_path / "clips.json").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ucf101-256-2048-s3", "5 clips of 16 frames at interval 3, ucf101-256-2048-s3 needs 12 "),
        ("k600-64-f5-50k", "5 clips of 16 frames at interval 1, k600-64-f5-50k needs 12 "),
        ("ucf101-128-class-10k", "clips of 16 frames at interval 1, ucf101-128-class-10k needs 12 "),
    ],
)
def test_too_few_clips_are_one_clear_line(name: str, message: str) -> None:
    length = 46 if "s3" in name else 16
    lengths = [] if "class" in name else [length] * 5
    with pytest.raises(ValueError, match=message) as caught:
        build_table(tiny(name, 6), index_of(lengths))
    assert "--count" in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_or_foreign_table_is_refused(tmp_path: Path) -> None:
    chosen, index = tiny("ucf101-256-2048-s3", 3), index_of([100] * 6)
    path, good = tmp_path / "clips.csv", build_table(chosen, index).csv()
    lines = good.splitlines()
    for text, message in (
        (good.replace(",3,16,", ",2,16,", 1), "16 frames at interval 2"),
        ("\n".join([*lines[:-1], lines[1].replace("real", "floor")]) + "\n", "1 clips come twice"),
        ("\n".join(lines[:-1]) + "\n", "2 rows of set floor"),
        (good.replace("v000", "w000", 1), "holds no clip"),
        (good.replace("real,0", "unreal,0", 1), r"line 2 is damaged \(set: "),
        (lines[0] + "\n" + lines[1].replace(",0.5000,", ",1.5000,", 1) + "\n", r"line 2 is damaged \(crop_x: "),
        ("set,fold\nreal,x\n", "line 2 is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_table(path, chosen, index)
    with pytest.raises(ValueError, match="no such clip table"):
        read_table(tmp_path / "none.csv", chosen, index)


def test_another_copy_of_the_data_has_another_hash() -> None:
    assert data_hash(index_of([50, 60])) == data_hash(index_of([50, 60]))
    assert len({data_hash(index_of(lengths)) for lengths in ([50, 60], [50, 61], [50], [60, 50])}) == 4
    assert ClipTable(()).hash != build_table(tiny("digits3d", 1), index_of([50, 60])).hash


def test_unknown_protocol_names_the_nearest_and_overrides_are_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'ucf101-256-2048-s3'"):
        protocol("ucf101-256-2048-s")
    same, none = overridden(protocol("digits3d"), count=256, score_size=None)
    assert same == protocol("digits3d") and none == {}
    assert overridden(protocol("digits3d"), count=8)[1] == {"count": 8}


def test_presets_are_those_of_the_literature() -> None:
    ucf, per_class, k600 = (protocol(name) for name in ("ucf101-256-2048-s3", "ucf101-128-class-10k", "k600-64-f5-50k"))
    assert (ucf.count, ucf.interval, ucf.frames, ucf.score_size, ucf.labels) == (2048, 3, 16, 256, "none")
    assert (per_class.count, per_class.folds, per_class.score_size, per_class.labels) == (10_000, 4, 128, "real")
    assert (k600.count, k600.interval, k600.context_frames, k600.score_size) == (50_000, 1, 5, 64)
    assert {
        name: one.clip_sampling for name, one in PROTOCOLS.items() if not one.ground_truth and one.network == "i3d"
    } == {
        "ucf101-256-2048-s3": "one_window",
        "ucf101-256-2048-s1": "one_window",
        "ucf101-256-2048-s3-17": "one_window",
        "ucf101-256-2048-s3-jpeg": "one_window",
        "ucf101-128-class-10k": "random_window",
        "ucf101-128-class-10k-17": "random_window",
        "ucf101-128-class-10k-larp": "windows",
        "ucf101-128-class-2048": "random_clip",
        "k600-64-f5-50k": "one_window",
        "k600-64-f5-50k-17": "one_window",
        "k600-64-f5-50k-grid": "grid",
        "k600-64-f5-50k-larp": "windows",
        "k600-64-f5-2048-omni": "centre_window",
        "k600-64-f5-50k-given": "one_window",
    }
    assert protocol("k600-64-f5-50k-larp").score_kernel == "antialiased" and k600.score_kernel == "half_pixel"
