import errno
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from magi.config import Config
from magi.data.clips import Clip
from magi.errors import DataError
from magi.latents.dataset import LatentClip
from magi.training.batch import Batch, Clips, MicroBatches, load_batches, make_batch
from magi.training.batch_sampler import StepBatchSampler
from magi.training.corruption import TokenShape, draw_corruption
from tests.fakes.training_runs import Clips as FakeClips
from tests.fakes.training_runs import tiny_config, train_tiny

SHAPE = TokenShape(frames=3, tokens=4, channels=8)


def batch(config: Config, samples: list[int]) -> Batch:
    draws = [draw_corruption(config.training, config.model, SHAPE, sample) for sample in samples]
    return make_batch([FakeClips()[sample] for sample in samples], draws, config.model)


def test_a_clip_is_the_same_in_any_batch() -> None:
    config = tiny_config()
    together, alone = batch(config, [3, 8, 5]), batch(config, [8])
    assert together.samples == (3, 8, 5) and together.video_BTHWC is None
    for name in ("latents_BTCHW", "masked_BUN", "amplitude_B", "noise_BTNC"):
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name)), name
    for name in ("interval_B", "label_B", "noise_level_B"):
        assert torch.equal(getattr(together.conditions, name)[1:2], getattr(alone.conditions, name)), name
    for name in ("timestep_RBUN", "diffusion_noise_RBUNC"):
        assert torch.equal(getattr(together, name)[:, 1:2], getattr(alone, name)), name


def test_conditions_are_the_clips() -> None:
    config = tiny_config(class_dropout=0.0)
    made = batch(config, list(range(7)))
    clips = [FakeClips()[sample] for sample in range(7)]
    assert made.conditions.interval_B.tolist() == [clip.interval for clip in clips]
    assert made.conditions.label_B is not None
    assert made.conditions.label_B.tolist() == [clip.label for clip in clips]
    level_B = (made.amplitude_B / 0.7 * 5).long() + 1
    assert made.conditions.noise_level_B.tolist() == level_B.tolist() and len(set(level_B.tolist())) > 1


def test_dropped_labels_are_the_null_class() -> None:
    labels = batch(tiny_config(class_dropout=1.0), [0, 1]).conditions.label_B
    assert labels is not None and labels.tolist() == [7, 7]
    some = batch(tiny_config(class_dropout=0.5), list(range(60))).conditions.label_B
    assert some is not None and 15 < int((some == 7).sum()) < 45


def test_without_classes_labels_are_not_looked_at() -> None:
    assert batch(tiny_config(model={"classes": 0}), [0, 1]).conditions.label_B is None


def test_masked_teacher_forcing_has_no_noise_and_says_so() -> None:
    made = batch(tiny_config(model={"teacher_forcing": "masked"}), list(range(20)))
    assert made.amplitude_B.eq(0).all() and made.conditions.noise_level_B.eq(1).all()


def test_videos_and_labels_without_classes_are_refused() -> None:
    config = tiny_config()
    draws = [draw_corruption(config.training, config.model, SHAPE, 0)]
    video = np.zeros((3, 8, 8, 3), np.uint8)
    made = make_batch([Clip(video, 1, 0, 0)], draws, config.model)
    assert made.video_BTHWC is not None and made.video_BTHWC.dtype == torch.uint8 and made.latents_BTCHW is None
    with pytest.raises(ValueError, match=r"model\.classes is 7, but a clip has label None"):
        make_batch([Clip(video, 1, None, 0)], draws, config.model)


class Failing:
    def __getitem__(self, sample: int) -> LatentClip:
        if sample == 5:
            raise DataError("clip.mp4: gone; index again")
        return FakeClips()[sample]


def micro_batches(clips: Clips, config: Config) -> MicroBatches:
    return MicroBatches(clips, config.training, config.model, SHAPE)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_keep_the_order_and_an_error_stays_one_line(workers: int) -> None:
    """An error that a loader process raises would arrive with the traceback of that process in its message."""
    config, order = tiny_config(), StepBatchSampler(0, 4, 4, 3)
    batches = load_batches(micro_batches(Failing(), config), order, workers, pin=False)
    assert [next(batches).samples for _ in range(2)] == [(0, 1, 2), (3,)]
    with pytest.raises(DataError, match=r"^clip\.mp4: gone; index again$"):
        next(batches)
    whole = load_batches(micro_batches(FakeClips(), config), order, workers, pin=False)
    assert [sample for made in whole for sample in made.samples] == list(range(16))


def test_the_loader_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(load_batches(micro_batches(FakeClips(), tiny_config()), StepBatchSampler(0, 1, 2, 0), 1, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_knows_the_masked_tokens_of_its_whole_step(world: int, workers: int) -> None:
    """Over all micro-batches and processes of its step, and of no other step."""
    config = tiny_config(batch=5, masked_views=2, seed=3)
    counts: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    totals = dict.fromkeys(counts, 0)
    for rank in range(world):
        order = StepBatchSampler(0, 3, 5, 2, rank, world)
        for made in load_batches(micro_batches(FakeClips(), config), order, workers, pin=False):
            step = made.samples[0] // 5
            counts[step].add(made.step_masked)
            totals[step] += int(made.masked_BUN.sum())
    assert counts == {step: {total} for step, total in totals.items()} and len(set(totals.values())) > 1
    alone = batch(config, [0, 1, 2, 3, 4])
    assert alone.step_masked == totals[0]


def test_data_identity_is_of_content_not_of_place(tmp_path: Path) -> None:
    from dataclasses import dataclass

    from magi.config import DataConfig
    from magi.data.clips import ClipDataset
    from magi.data.index.index import VideoIndex
    from magi.training.batch import data_identity

    @dataclass(frozen=True)
    class Record:
        path: str
        frames: int = 9
        bytes: int = 100
        label: int | None = None

    def identity(root: str, *records: Record) -> str | None:
        index = VideoIndex(Path(root), (), records)  # type: ignore[arg-type]
        return data_identity(ClipDataset(index, DataConfig(frames=3), 0))

    here = identity("here", Record("a.mp4"), Record("b.mp4"))
    assert (
        here is not None
        and here.startswith("2 videos ")
        and identity("there", Record("a.mp4"), Record("b.mp4")) == here
    )
    others = [(Record("a.mp4"),), (Record("a.mp4"), Record("c.mp4")), (Record("a.mp4"), Record("b.mp4", frames=10))]
    others += [(Record("a.mp4"), Record("b.mp4", label=1)), (Record("a.mp4"), Record("b.mp4", bytes=101))]
    assert here not in {identity("here", *records) for records in others}
    assert data_identity(FakeClips()) is None


def test_too_little_shared_memory_is_one_line_at_once(tmp_path: Path) -> None:
    """A worker may not make files of more than 100 bytes, which shared memory is made of; it must not be waited for."""

    def full(sample: int) -> None:
        if get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^no shared memory left .* give --data\.workers 0, .*/dev/shm") as refused:
        train_tiny(tmp_path / "run", tiny_config(workers=2), FakeClips(on_clip=full))
    assert "\n" not in str(refused.value) and time.monotonic() - began < 60
    train_tiny(tmp_path / "run", tiny_config(workers=0))


def test_a_full_shared_memory_is_told_before_the_loader_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Event", full)
    monkeypatch.setattr("magi.training.batch.DataLoader", lambda *words, **more: pytest.fail("a loader was made"))
    with pytest.raises(ValueError, match=r"^no shared memory left .*No space left on device\): give --data\.workers 0"):
        train_tiny(tmp_path / "run", tiny_config(workers=2))


def test_too_few_open_files_are_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(32, 100)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[0])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    with pytest.raises(
        ValueError, match=r"^100 open files are allowed, 2 data\.workers need 144: give --data\.workers 0"
    ):
        train_tiny(tmp_path / "run", tiny_config(workers=2))
    limits[0] = (32, 4096)
    train_tiny(tmp_path / "run", tiny_config(steps=1, workers=2))
    assert limits == [(32, 4096), (144, 4096)], "a low limit of the process itself is raised, no further than needed"
    train_tiny(tmp_path / "run", tiny_config(steps=2, workers=0))
    assert len(limits) == 2
