"""Samples of a protocol: none missing, none twice, the same whoever makes them and however often they are stopped."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import DataConfig
from magi.data.index.index import VideoIndex, open_index
from magi.errors import DataError
from magi.evaluation.protocol.clip_table import ClipTable, build_table
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import EvaluationProtocol, overridden, protocol
from magi.evaluation.protocol.real_clips import RealClips
from magi.evaluation.protocol.samples import (
    SHARD,
    SamplePlan,
    generate_samples,
    sample_plan,
    sample_seed,
    uniform_label,
)
from tests.fakes.look_alikes import Painter, Projection, painted, write_look_alikes

COUNT = 2 * SHARD + 6  # the last shard is not full


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    return open_index(DataConfig(root=str(write_look_alikes(tmp_path_factory.mktemp("videos"), 6, frames=24))))


def chosen(name: str = "k600-64-f5-50k", **changes: Any) -> EvaluationProtocol:
    small = {"count": COUNT, "read_size": 32, "score_size": 32, "clip_sampling": "random_window", "crop": "random"}
    return overridden(protocol(name), **(small | changes))[0]


def evaluation(
    model: Any, one: EvaluationProtocol, index: VideoIndex, folder: Path, seed: int = 0, batch: int = 8
) -> Evaluation:
    clips, table = RealClips(one, index), build_table(one, index)
    metrics, overrides = Metrics(Projection()), {"singular": True}
    return Evaluation(one, overrides, metrics, clips, table, folder, {"painter": model}, seed, batch)


def generated(
    model: Any,
    one: EvaluationProtocol,
    index: VideoIndex,
    folder: Path,
    batch: int = 8,
    worker: tuple[int, int] = (0, 1),
) -> tuple[SamplePlan, ClipTable]:
    asked = evaluation(model, one, index, folder, batch=batch)
    plan = sample_plan(asked, "painter")
    assert generate_samples(asked, worker) != bool(plan.missing())
    return plan, asked.table


def samples(plan: SamplePlan) -> Tensor:
    return torch.cat(list(plan.read(0, plan.count, SHARD)))


@pytest.fixture(scope="module")
def whole(index: VideoIndex, tmp_path_factory: pytest.TempPathFactory) -> tuple[SamplePlan, Painter, ClipTable]:
    model = Painter()
    plan, table = generated(model, chosen(context_frames=0), index, tmp_path_factory.mktemp("whole"))
    return plan, model, table


def test_seeds_depend_on_run_and_number_alone_and_never_meet() -> None:
    assert sample_seed(3, 17) == sample_seed(3, 17) != sample_seed(4, 17)
    seeds = {sample_seed(run, k) for run in range(3) for k in range(50_000)}
    assert len(seeds) == 150_000 and min(seeds) >= 0 and max(seeds) < 2**32


def test_every_sample_is_there_once_in_order(whole: tuple[SamplePlan, Painter, ClipTable]) -> None:
    plan, model, _ = whole
    assert [seed for call in model.asked for seed in call["seeds"]] == [sample_seed(0, k) for k in range(COUNT)]
    video = torch.cat(list(plan.read(0, COUNT, 9)))
    assert video.shape == (COUNT, 16, 32, 32, 3) and video.dtype == torch.uint8
    for number in (0, 31, 32, COUNT - 1):
        assert torch.equal(video[number], torch.from_numpy(painted(1000 + sample_seed(0, number), 16, 32, 32)))
    assert len(torch.unique(video.flatten(1), dim=0)) == COUNT
    assert plan.missing() == [] and len(list(plan.folder.iterdir())) == 3


def test_samples_are_drawn_with_the_seed_of_the_run(index: VideoIndex, tmp_path: Path) -> None:
    model = Painter()
    assert generate_samples(evaluation(model, chosen(context_frames=0, count=10), index, tmp_path, seed=5))
    assert [seed for call in model.asked for seed in call["seeds"]] == [sample_seed(5, k) for k in range(10)]


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_makes_the_same_samples(
    workers: int, whole: tuple[SamplePlan, Painter, ClipTable], index: VideoIndex, tmp_path: Path
) -> None:
    asked = []
    for number in reversed(range(workers)):
        model = Painter()
        plan, _ = generated(model, chosen(context_frames=0), index, tmp_path, batch=5, worker=(number, workers))
        asked += [seed for call in model.asked for seed in call["seeds"]]
        assert bool(plan.missing()) == (number > 0)
    assert sorted(asked) == sorted(sample_seed(0, k) for k in range(COUNT))
    assert torch.equal(samples(plan), samples(whole[0]))


def test_the_last_worker_knows_that_it_is_the_last(index: VideoIndex, tmp_path: Path) -> None:
    """Of two models: the other worker finishes both while this one is at the second."""

    class Overtaken(Painter):
        def stream(self, **asked: Any) -> Iterator[Tensor]:
            if not self.asked:
                finished.append(generate_samples(both(Painter()), (1, 2)))
            return super().stream(**asked)

    def both(second: Painter) -> Evaluation:
        asked = evaluation(Painter(), chosen(context_frames=0), index, tmp_path)
        return replace(asked, models={"first": Painter(), "second": second})  # type: ignore[dict-item]

    finished: list[bool] = []
    assert generate_samples(both(Overtaken()), (0, 2))
    assert finished == [False]


def test_a_stopped_run_goes_on_and_ends_the_same(
    whole: tuple[SamplePlan, Painter, ClipTable], index: VideoIndex, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        generated(Painter(fail_at_call=7), chosen(context_frames=0), index, tmp_path)
    model = Painter()
    plan, _ = generated(model, chosen(context_frames=0), index, tmp_path)
    assert len(model.asked) == 5  # the first shard, four calls, was whole
    assert torch.equal(samples(plan), samples(whole[0]))
    again = Painter()
    generated(again, chosen(context_frames=0), index, tmp_path)
    assert again.asked == []


def test_a_damaged_shard_is_made_again_and_missing_ones_are_reported(
    whole: tuple[SamplePlan, Painter, ClipTable], index: VideoIndex, tmp_path: Path
) -> None:
    plan, _ = generated(Painter(), chosen(context_frames=0), index, tmp_path)
    whole_shard = plan.path(1).read_bytes()
    plan.path(1).write_bytes(plan.path(0).read_bytes())  # another shard's samples would come twice
    assert plan.missing() == [1]
    plan.path(1).write_bytes(whole_shard.replace(plan.key.encode(), b"0" * 64))  # made otherwise
    assert plan.missing() == [1]
    plan.path(1).write_bytes(whole_shard[:900])
    assert plan.missing() == [1]
    with pytest.raises(DataError, match="shard missing or damaged"):
        list(plan.read(0, COUNT, 8))
    generated(Painter(), chosen(context_frames=0), index, tmp_path)
    assert torch.equal(samples(plan), samples(whole[0]))


def test_other_settings_use_other_shards(whole: tuple[SamplePlan, Painter, ClipTable], index: VideoIndex) -> None:
    plan, _, _ = whole
    one, changed = chosen(context_frames=0), Painter()
    torch.nn.init.zeros_(changed.model.weight)
    sampled = Painter()
    sampling = sampled.config.sampling.model_copy(update={"temperature": 0.9})
    sampled.config = sampled.config.model_copy(update={"sampling": sampling})
    others = [
        evaluation(changed, one, index, plan.folder),
        evaluation(sampled, one, index, plan.folder),
        evaluation(Painter(), one, index, plan.folder, seed=1),
        evaluation(Painter(), chosen(context_frames=0, table_seed=1), index, plan.folder),
        evaluation(Painter(), chosen(context_frames=0, score_kernel="tf1"), index, plan.folder),
    ]
    assert len({plan.key, *(sample_plan(asked, "painter").key for asked in others)}) == 6


def test_context_is_the_real_clip_of_the_same_number(index: VideoIndex, tmp_path: Path) -> None:
    given, decoded = chosen("k600-64-f5-50k-given", count=6), chosen(count=6)
    model = Painter()
    model.vae.decode = lambda latents: torch.full((len(latents), 5, 32, 32, 3), 9, dtype=torch.uint8)  # type: ignore[method-assign]
    plan, table = generated(model, given, index, tmp_path / "given", batch=4)
    clips = RealClips(given, index)
    video = torch.cat(list(plan.read(0, 6, 6)))
    for number, row in enumerate(table.of("real", 0)):
        assert torch.equal(video[number, :5], clips.read(row)[:5])
        assert torch.equal(video[number, 5:], torch.from_numpy(painted(1000 + sample_seed(0, number), 16, 32, 32)[5:]))
    through, _ = generated(model, decoded, index, tmp_path / "decoded")
    assert (torch.cat(list(through.read(0, 6, 6)))[:, :5] == 9).all()


def test_labels_are_none_real_or_uniform(index: VideoIndex, tmp_path: Path) -> None:
    model = Painter()
    _, table = generated(model, chosen("ucf101-128-class-10k", folds=1, count=6), index, tmp_path / "real", batch=4)
    assert [label for call in model.asked for label in call["labels"]] == [
        row.video.split("/")[0] for row in table.of("real", 0)
    ]
    model = Painter()
    generated(model, chosen("ucf101-128-class-2048", count=6), index, tmp_path / "uniform", batch=4)
    assert [label for call in model.asked for label in call["labels"]] == [uniform_label(0, k, 3) for k in range(6)]
    draws = [uniform_label(0, k, 4) for k in range(400)]
    assert all(70 < draws.count(label) < 130 for label in range(4))
    model = Painter()
    generated(model, chosen("ucf101-256-2048-s1", count=6), index, tmp_path / "none")
    assert model.asked[0]["labels"] is None and model.asked[0]["interval"] == 1
    with pytest.raises(ValueError, match="tells the class, but this model has none"):
        generated(Painter(classes=0), chosen("ucf101-128-class-2048", count=6), index, tmp_path / "no")


@pytest.mark.parametrize("interval", [1, 2])
def test_a_model_is_told_the_interval_of_the_real_clips(interval: int, index: VideoIndex, tmp_path: Path) -> None:
    model = Painter()
    generated(model, chosen("ucf101-256-2048-s1", frames=9, count=6, interval=interval), index, tmp_path)
    assert [call["interval"] for call in model.asked] == [interval]


def test_context_and_reconstruction_are_at_the_size_of_the_model_and_scored_at_that_of_the_protocol(
    index: VideoIndex, tmp_path: Path
) -> None:
    """A model of 48 pixels, scored at 32: what it is given, and what its autoencoder is measured on, has its pixels."""
    model, seen = Painter(size=48), list[tuple[int, ...]]()
    encode = model.vae.encode

    def recorded(video_BTHWC: Tensor) -> Tensor:
        seen.append(tuple(video_BTHWC.shape))
        return encode(video_BTHWC)

    model.vae.encode = recorded  # type: ignore[method-assign]
    asked = evaluation(model, chosen(count=4, frames=16), index, tmp_path)
    assert generate_samples(asked)
    (reconstructed,) = asked.reconstructed(asked.models["painter"], "floor", 1, 4)
    assert seen == [(4, 5, 48, 48, 3), (3, 16, 48, 48, 3)] and model.asked[0]["context"].shape == (4, 5, 48, 48, 3)
    assert reconstructed.shape == (3, 16, 32, 32, 3)
    clips = asked.clips.batches(asked.rows("floor")[1:4], 8)
    assert float((reconstructed.double() - next(clips).double()).abs().mean()) < 8, "the same clips"
    stored = next(sample_plan(asked, "painter").read(0, 4, 4))
    assert stored.shape == (4, 16, 48, 48, 3), "samples are kept as the model made them"
