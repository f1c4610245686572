"""Claims: frames are a pure function of (seed, step); a stopped training continues as if it never stopped; the result
is the averaged weights with measured statistics; what cannot be continued or trained is refused in one line.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from magi.config import DataConfig, VaeTrainingConfig
from magi.data.index.index import VideoIndex, open_index
from magi.data.moving_digits import write_digits
from magi.errors import CheckpointError, NumericsError, StoppedCleanly
from magi.training.log import read_metrics
from magi.training.run_folder import locked
from magi.training.small_vae import trainer as vae_trainer
from magi.training.small_vae.frames import PooledFrames, ReadFrames, open_frames, split_index, spread_count
from magi.training.small_vae.trainer import VaeTrainer, cosine_rate, psnr, train_vae, vae_errors
from magi.vae.diffusers.small import SmallVae, pixels_to_network
from tests.fakes.training_runs import told

FRAMES = 12
CPU = torch.device("cpu")
CONFIG = VaeTrainingConfig(
    steps=6, batch=3, height=32, width=32, patch=4, widths=(8, 8), warmup_steps=2, log_every=2, checkpoint_every=100,
    pool_frames=4, workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    root = tmp_path_factory.mktemp("videos")
    write_digits(root, clips=4, size=32, seed=0, frames=FRAMES)
    return open_index(DataConfig(root=str(root), workers=1))


def train(index: VideoIndex, out: Path, **settings: object) -> tuple[SmallVae, list[str]]:
    config = VaeTrainingConfig.model_validate(CONFIG.model_dump() | settings)
    with redirect_stdout(StringIO()) as printed:
        vae = train_vae(config, index, out, "cpu")
    return vae, printed.getvalue().splitlines()


def silent(line: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize("source", [PooledFrames, ReadFrames])
def test_frames_of_a_step_depend_on_seed_and_step_alone(index: VideoIndex, source: type) -> None:
    def frames(workers: int, seed: int, steps: list[int]) -> list[np.ndarray]:
        config = CONFIG.model_copy(update={"workers": workers, "seed": seed, "batch": 5})
        opened = source(index, config, silent) if source is PooledFrames else source(index, config)
        taken = [opened.of_step(step) for step in steps]
        opened.close()
        return taken

    in_order, resumed, other = frames(1, 0, [0, 1, 2, 3]), frames(3, 0, [2, 3]), frames(1, 1, [2])
    assert all(batch.shape == (5, 32, 32, 3) and batch.dtype == np.uint8 for batch in in_order)
    assert np.array_equal(in_order[2], resumed[0]) and np.array_equal(in_order[3], resumed[1])
    assert not np.array_equal(in_order[2], in_order[3]) and not np.array_equal(in_order[2], other[0])
    assert np.array_equal(frames(2, 0, [3, 1])[1], in_order[1])


@pytest.mark.parametrize(
    ("length", "most", "expected"), [(12, 4, (4, 3)), (3, 4, (3, 1)), (200, 40, (40, 5)), (1, 9, (1, 1))]
)
def test_pooled_frames_are_evenly_spread(length: int, most: int, expected: tuple[int, int]) -> None:
    frames, interval = spread_count(length, most)
    assert (frames, interval) == expected
    assert (frames - 1) * interval < length


def test_the_pool_holds_the_right_frames_of_every_video(index: VideoIndex) -> None:
    from magi.data.decoding.frames import read_frames

    pooled = PooledFrames(index, CONFIG, silent)
    expected = [read_frames(index.root / record.path, [0, 3, 6, 9], record) for record in index.videos]
    assert np.array_equal(pooled.pool_NHWC, np.concatenate(expected))


def test_videos_that_do_not_fit_in_memory_or_are_long_are_read_by_clips(index: VideoIndex) -> None:
    lines: list[str] = []
    for settings, kind in (({}, PooledFrames), ({"pool_megabytes": 0}, ReadFrames)):
        source = open_frames(index, CONFIG.model_copy(update=settings), lines.append)
        source.close()
        assert isinstance(source, kind)
    assert "reading by clips" in lines[-1]


def test_one_video_in_fifty_is_held_out(index: VideoIndex) -> None:
    training, held_out = split_index(index)
    assert [record.path for record in held_out.videos] == [index.videos[-1].path]
    assert set(training.videos) | set(held_out.videos) == set(index.videos)
    assert len(training.videos) == len(index.videos) - 1
    alone = VideoIndex(index.root, index.classes, index.videos[:1])
    assert split_index(alone) == (alone, alone)


def test_a_training_writes_all_it_promises_and_is_done_afterwards(index: VideoIndex, tmp_path: Path) -> None:
    out = tmp_path / "vae"
    vae, lines = train(index, out)
    for name in (
        "config.json",
        "model.safetensors",
        "reconstructions.png",
        "metrics.jsonl",
        "loss.png",
        "checkpoints/latest",
    ):
        assert (out / name).is_file(), name
    assert SmallVae.load(out).id == vae.id
    metrics = read_metrics(out)
    assert [line["step"] for line in metrics] == [2, 4, 6, 6]
    assert metrics[-1]["id"] == vae.id and 0 < metrics[-1]["worst_frame_psnr_db"] <= metrics[-1]["held_out_psnr_db"]
    assert any(line.startswith("step 2/6  loss ") and "dB" in line and "left" in line for line in lines)
    before = (out / "model.safetensors").read_bytes()
    again, lines = train(index, out)
    assert again.id == vae.id and len(lines) == 1 and "all 6 steps are done" in lines[0]
    assert (out / "model.safetensors").read_bytes() == before


def test_the_result_is_the_average_with_measured_statistics(index: VideoIndex, tmp_path: Path) -> None:
    vae, _ = train(index, tmp_path, ema_decay=0.5)
    frames_NHWC = torch.from_numpy(
        PooledFrames(split_index(index)[0], CONFIG.model_copy(update={"pool_frames": 12}), silent).pool_NHWC
    )
    posterior = vae.posterior(frames_NHWC[None])
    mean_CN, std_CN = (values[0].movedim(1, 0).flatten(1) for values in (posterior.mean_BTCHW, posterior.std_BTCHW))
    torch.testing.assert_close(mean_CN.mean(1), torch.zeros(4), rtol=0, atol=1e-3)
    drawn_C = (mean_CN.var(1, correction=0) + std_CN.square().mean(1)).sqrt()
    torch.testing.assert_close(drawn_C, torch.ones(4), rtol=0, atol=1e-3)
    last, _ = train(index, tmp_path / "last", ema_decay=0.0)
    assert last.id != vae.id, "the averaged weights are not the last ones"


@pytest.mark.parametrize("pool_megabytes", [100, 0])
def test_resuming_equals_never_having_stopped(
    index: VideoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_megabytes: int
) -> None:
    whole, _ = train(index, tmp_path / "whole", pool_megabytes=pool_megabytes, log_every=1)
    take_step = VaeTrainer.take_step

    def interrupted(self: VaeTrainer, stop_asked: Callable[[], bool]) -> vae_trainer.VaeStep:
        if self.step in (1, 3):
            os.kill(os.getpid(), signal.SIGTERM if self.step == 1 else signal.SIGINT)
        return take_step(self, stop_asked)

    monkeypatch.setattr(VaeTrainer, "take_step", interrupted)
    for step in (2, 4):
        with pytest.raises(StoppedCleanly, match=f"stopped after step {step}"):
            train(index, tmp_path / "parts", pool_megabytes=pool_megabytes, log_every=1)
    parts, lines = train(index, tmp_path / "parts", pool_megabytes=pool_megabytes, log_every=1)
    assert lines[0].endswith("after step 4")
    assert parts.id == whole.id
    assert told(tmp_path / "parts") == told(tmp_path / "whole")


def test_another_config_or_other_videos_do_not_continue(index: VideoIndex, tmp_path: Path) -> None:
    train(index, tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"kl_weight was 3e-05, now 0\.1"):
        train(index, tmp_path / "vae", kl_weight=0.1)
    fewer = VideoIndex(index.root, index.classes, index.videos[:-1])
    with pytest.raises(CheckpointError, match="started with the data 4 videos with 48 frames, now 3 videos"):
        train(fewer, tmp_path / "vae")
    train(index, tmp_path / "vae", log_every=5, checkpoint_every=3, workers=0)


def test_a_folder_with_a_finished_autoencoder_is_not_overwritten(index: VideoIndex, tmp_path: Path) -> None:
    vae, _ = train(index, tmp_path / "vae", steps=1)
    vae.save(tmp_path / "copy")
    with pytest.raises(ValueError, match="holds an autoencoder already"):
        train(index, tmp_path / "copy")
    assert SmallVae.load(tmp_path / "copy").id == vae.id


def test_a_folder_in_use_is_refused(index: VideoIndex, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="in use by process"):
        train(index, tmp_path)


def test_damaged_checkpoints_fall_back_or_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    def damage(step: int) -> None:
        path = tmp_path / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])

    whole, _ = train(index, tmp_path, checkpoint_every=3)
    damage(6)
    with pytest.warns(UserWarning, match="falling back to step-000000003"):
        again, lines = train(index, tmp_path, checkpoint_every=3)
    assert lines[0].endswith("after step 3") and again.id == whole.id
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6, 6]
    damage(6)
    damage(3)
    with pytest.raises(CheckpointError, match="no good checkpoint is left"):
        train(index, tmp_path, checkpoint_every=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"height": 36}, "height 36 x width 32.*stride 8"), ({"widths": (8, 12)}, r"train-vae: .*norm_groups 8")],
)
def test_sizes_and_widths_that_do_not_fit_are_refused(
    index: VideoIndex, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        train(index, tmp_path / "vae", **settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "vae").exists()


def test_a_non_finite_step_changes_nothing_and_ten_end_the_training(
    index: VideoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state(trainer: VaeTrainer) -> list[torch.Tensor]:
        parts = trainer.checkpoint()
        return [value.clone() for part in (parts.model, parts.ema, parts.optimizer) for value in part.values()]

    trainer, frames_NHWC = VaeTrainer(CONFIG, index, CPU), np.zeros((2, 32, 32, 3), np.uint8)
    trainer.step_on(frames_NHWC)
    before = state(trainer)
    monkeypatch.setattr(vae_trainer, "reconstruction_loss", lambda error: error.sum() * float("nan"))
    assert trainer.step_on(frames_NHWC).skipped and trainer.step == 2
    assert all(torch.equal(old, new) for old, new in zip(before, state(trainer), strict=True))
    with pytest.raises(NumericsError, match=r"10 steps in a row.*lower learning_rate"):
        train(index, tmp_path, steps=30)
    assert not (tmp_path / "model.safetensors").exists()


def test_noise_of_the_posterior_comes_from_the_given_generator(index: VideoIndex) -> None:
    trainer = VaeTrainer(CONFIG, index, CPU)
    images = pixels_to_network(torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8), 4)

    def error(seed: int) -> torch.Tensor:
        return vae_errors(trainer.network, images, torch.Generator().manual_seed(seed))[0].detach()

    assert torch.equal(error(0), error(0)) and not torch.equal(error(0), error(1))


def test_initial_weights_follow_the_seed(index: VideoIndex) -> None:
    first, same = (VaeTrainer(CONFIG, index, CPU).result().id for _ in range(2))
    other = VaeTrainer(CONFIG.model_copy(update={"seed": 1}), index, CPU).result().id
    assert first == same != other


def test_rate_rises_then_falls_to_its_floor() -> None:
    config = VaeTrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [cosine_rate(config, step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01) and max(rates) == rates[9]
    assert rates[-1] == pytest.approx(vae_trainer.FLOOR_RATE) and sorted(rates[9:], reverse=True) == rates[9:]


def test_psnr_of_known_errors() -> None:
    assert psnr(255.0**2) == 0 and psnr(0.0) == 100
    assert psnr(6.5025) == pytest.approx(40) and psnr(4e-4, 2.0) == pytest.approx(40)


def test_a_short_training_learns_two_frames(index: VideoIndex) -> None:
    settings = {"steps": 100, "learning_rate": 2e-2, "ema_decay": 0.5}
    trainer = VaeTrainer(CONFIG.model_copy(update=settings), index, CPU)
    frames_NHWC = np.zeros((2, 32, 32, 3), np.uint8)
    frames_NHWC[0, 8:20, 10:16], frames_NHWC[1, 20:26, 4:28] = 255, 128
    psnrs = [trainer.step_on(frames_NHWC).psnr_db for _ in range(100)]
    assert psnrs[-1] > 22 > psnrs[0] + 10
    video_BTHWC, vae = torch.from_numpy(frames_NHWC)[None], trainer.result()
    error = (vae.decode(vae.encode(video_BTHWC)).float() - video_BTHWC.float()).square().mean().item()
    assert psnr(error) > 20


def test_no_signal_handlers_are_needed_outside_the_main_thread(index: VideoIndex, tmp_path: Path) -> None:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(train(index, tmp_path / "vae", steps=1)[0].id))
    thread.start()
    thread.join()
    assert results and json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8"))["name"] == "small"
