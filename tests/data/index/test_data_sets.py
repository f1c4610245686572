"""UCF-101 and Kinetics-600 as they come, in small: what is listed, what it shows, and exactly the right frames."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from magi.config import DataConfig
from magi.data.clips import ClipDataset
from magi.data.decoding.frames import read_frames
from magi.data.index.index import VideoIndex, open_index
from magi.errors import DataError
from tests.fakes.look_alikes import KINETICS_CLASSES, UCF_CLASSES, write_kinetics600, write_ucf101
from tests.fakes.numbered_videos import COUNT, HEIGHT, WIDTH, number_in


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ucf")
    write_ucf101(root)
    return root


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinetics")
    write_kinetics600(root)
    return root


def ucf_config(root: Path, split: str, **settings: object) -> DataConfig:
    return DataConfig(root=str(root / "UCF-101"), annotations=str(root / "ucfTrainTestlist"), split=split, **settings)  # type: ignore[arg-type]


def kinetics_config(root: Path, split: str, annotations: str = "annotations") -> DataConfig:
    return DataConfig(
        root=str(root / split), annotations=str(root / annotations), split=split, max_bad_fraction=0.5, workers=2
    )


def check_frames(index: VideoIndex) -> None:
    """Chosen frames of every video are those whose numbers are drawn in them, however they are reached."""
    for record in index.videos:
        for numbers in ([0], [COUNT - 1], [47, 60], list(range(5, COUNT, 9))):
            frames_THWC = read_frames(index.root / record.path, numbers, record)
            turned = frames_THWC.shape[1:3] == (WIDTH, HEIGHT)
            frames_THWC = np.rot90(frames_THWC, -1, (1, 2)) if turned else frames_THWC
            assert [number_in(frame_HWC) for frame_HWC in frames_THWC] == numbers, record.path


def test_ucf101_splits_labels_and_frames(ucf: Path) -> None:
    train = open_index(ucf_config(ucf, "trainlist01"))
    test = open_index(ucf_config(ucf, "test01"))
    assert train.classes == test.classes == UCF_CLASSES
    assert [(record.path, record.label) for record in train.videos] == [
        (f"{name}/v_{name}_g08_c01.avi", label) for label, name in enumerate(UCF_CLASSES)
    ]
    assert [record.label for record in test.videos] == [0, 2]
    assert {record.frames for record in (*train.videos, *test.videos)} == {COUNT}
    check_frames(train)
    check_frames(test)


def test_xvid_with_b_frames_is_read_from_the_start(ucf: Path) -> None:
    """B-frames in AVI (plain and packed) have no exact seek, and the index says so; without them there is one."""
    index = open_index(ucf_config(ucf, "trainlist01"))
    assert [record.pts is None for record in index.videos] == [True, False, True]


def test_clips_of_a_split_are_the_right_frames(ucf: Path) -> None:
    config = ucf_config(ucf, "trainlist01", frames=4, height=HEIGHT, width=WIDTH, interval_max=25)
    dataset = ClipDataset(open_index(config), config, seed=1)
    for sample in range(6):
        draw, clip = dataset.draws.draw(sample), dataset[sample]
        assert [number_in(frame) for frame in clip.video_THWC] == [draw.start + draw.interval * k for k in range(4)]
        assert clip.label == draw.video


def test_ucf101_without_its_lists_is_class_folders(ucf: Path) -> None:
    index = open_index(DataConfig(root=str(ucf / "UCF-101")))
    assert index.classes == UCF_CLASSES and len(index.videos) == 5


def test_kinetics_in_flat_files_with_bad_and_missing_ones(kinetics: Path) -> None:
    index = open_index(kinetics_config(kinetics, "train"))
    assert index.classes == KINETICS_CLASSES
    assert [(record.path, record.label) for record in index.videos] == [
        ("aaaaaaaaaaa_000010_000020.mp4", 1),
        ("bb-b_bbbbbb_000000_000010.mp4", 2),
        ("ccccccccccc.mp4", 0),
    ]
    assert (index.skipped, index.missing) == (2, 1)
    report = json.loads((kinetics / "train" / "magi-index-annotations-train-report.json").read_text())
    counts = {"listed": 5, "usable": 3, "skipped": 2, "annotated_but_missing": 1}
    counts |= {"ignored_junk_files": 1, "ignored_unlisted_videos": 1, "missing_files": ["fffffffffff_000001_000011"]}
    assert counts.items() <= report.items()
    assert sum(report["skipped_by_reason"].values()) == 2 and report["skipped_by_reason"]["empty_file"] == 1
    check_frames(index)


def test_kinetics_in_class_folders_has_the_same_labels(kinetics: Path) -> None:
    index = open_index(kinetics_config(kinetics, "val"))
    assert index.classes == KINETICS_CLASSES and [record.label for record in index.videos] == [1, 2]
    check_frames(index)
    single = open_index(kinetics_config(kinetics, "val", "annotations/val.csv"))
    assert single.classes == ("air drumming", "zumba") and [record.label for record in single.videos] == [0, 1]


def test_time_stamps_of_an_uneven_rate_are_packed_on_disk_and_complete_in_memory(kinetics: Path) -> None:
    index = open_index(kinetics_config(kinetics, "train"))
    record = index.videos[1]
    assert isinstance(record.pts, tuple) and len(record.pts) == COUNT and len(set(np.diff(record.pts))) > 10
    with safe_open(kinetics / "train" / "magi-index-annotations-train.safetensors", "np") as file:
        assert 0 < file.get_tensor("steps").size < 300


def test_a_wrong_folder_holds_none_of_the_split(ucf: Path, kinetics: Path) -> None:
    config = kinetics_config(kinetics, "train").model_copy(update={"root": str(ucf / "UCF-101")})
    with pytest.raises(DataError, match=r"none of the 6 videos .* as 'aaaaaaaaaaa_000010_000020'; check data\.root"):
        open_index(config)


def test_a_folder_and_a_row_that_contradict_each_other_are_named(kinetics: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("label,youtube_id\nzumba,ggggggggggg\nair drumming,hhhhhhhhhhh\n")
    for stem in ("ggggggggggg", "hhhhhhhhhhh"):
        (tmp_path / "air drumming").mkdir(exist_ok=True)
        (tmp_path / "air drumming" / f"{stem}.mp4").touch()
    with pytest.raises(DataError, match=r"ggggggggggg\.mp4: lies in .* class 'air drumming', but .* 'zumba'"):
        open_index(DataConfig(root=str(tmp_path), annotations=str(tmp_path / "rows.csv")))
