"""The plan of a run: the parts of its memory, what fits, and its schedule."""

import pytest

from magi.config import Config, LatentShape, TrainingConfig
from magi.presets import preset, size
from magi.training.cost import (
    CORE_NUMBERS,
    GIB,
    GPUS,
    USABLE_MEMORY,
    advice,
    changed,
    count_parameters,
    fitting,
    plan,
    will_not_fit,
)

LATENT = LatentShape(frames=16, channels=4, height=32, width=32)
LARGE = Config(model=size("large"), training=TrainingConfig(batch=128, micro_batch=2, steps=1000))


def test_large_is_the_papers_size() -> None:
    """Section 3: about 850 million."""
    assert 800e6 < count_parameters(LARGE, LATENT) < 860e6


def test_states_are_five_float32_copies_and_fsdp_shares_them() -> None:
    made = plan(LARGE, LATENT, GPUS["h200"], 8)
    assert made.memory.states == 5 * 4 * made.parameters
    sharded = plan(changed(LARGE, parallel="fsdp"), LATENT, GPUS["h200"], 8)
    assert sharded.memory.states == made.memory.states / 8
    assert sharded.memory.activations == made.memory.activations
    assert plan(changed(LARGE, parallel="fsdp"), LATENT, GPUS["h200"], 1).memory.states == made.memory.states


def test_schedule_is_arithmetic() -> None:
    made = plan(LARGE, LATENT, GPUS["h100"], 8, utilisation=0.5)
    assert made.step_seconds == pytest.approx(16 * made.clip.total / (989e12 * 0.5))
    assert made.gpu_days == pytest.approx(8 * 1000 * made.step_seconds / 86400)
    assert plan(LARGE, LATENT, GPUS["h100"], 6).share == 22  # of 128 clips, the slowest process has the largest share
    recomputed = plan(changed(LARGE, activation_checkpointing=True), LATENT, GPUS["h100"], 8, utilisation=0.5)
    assert 1.25 < recomputed.step_seconds / made.step_seconds < 1.34
    assert recomputed.memory.activations < 0.2 * made.memory.activations


def test_cores_draw_as_many_numbers_as_the_clips_of_a_gpu_need() -> None:
    """Counted on what a clip of training holds: every number that is drawn for it."""
    from magi.training.corruption import TokenShape, draw_corruption

    config = changed(LARGE, masked_views=2, first_frame_views=1, diffusion_batch_mul=3)
    made = plan(config, LATENT, GPUS["h100"], 8)
    drawn = draw_corruption(config.training, config.model, TokenShape(16, 256, 16), 0)
    posterior = 16 * 4 * 32 * 32
    assert made.numbers == posterior + drawn.noise_TNC.numel() + drawn.diffusion_noise_RUNC.numel()
    assert made.clips_a_second == pytest.approx(16 / made.step_seconds)
    assert made.cores == pytest.approx(made.numbers * 16 / made.step_seconds / CORE_NUMBERS)
    mean = config.model_copy(update={"data": config.data.model_copy(update={"sample_posterior": False})})
    assert plan(mean, LATENT, GPUS["h100"], 8).numbers == made.numbers - posterior


def test_what_fits_is_the_largest_that_fits() -> None:
    found = fitting(LARGE, LATENT, GPUS["a100-80"], 8)
    assert found is not None and found.fits
    more = plan(changed(LARGE, micro_batch=found.micro_batch + 1), LATENT, GPUS["a100-80"], 8)
    assert not more.fits and more.memory.peak > 80 * GIB * USABLE_MEMORY
    assert fitting(LARGE, LATENT, GPUS["4090"], 8) is None


def test_a_run_that_will_not_fit_is_told_what_does() -> None:
    """And what it is told is true."""
    made = plan(LARGE, LATENT, GPUS["4090"], 8)
    warning = will_not_fit(made, LARGE, LATENT)
    assert warning is not None and warning.count("\n") == 0
    assert warning.startswith("will not fit: about 48.") and "of 24 GiB" in warning
    assert warning.endswith("it fits with --training.activation-checkpointing --training.micro-batch 1")
    assert plan(changed(LARGE, activation_checkpointing=True, micro_batch=1), LATENT, GPUS["4090"], 8).fits
    assert will_not_fit(plan(LARGE, LATENT, GPUS["h200"], 8), LARGE, LATENT) is None
    wider = LARGE.model_copy(update={"model": size("large", width=2560, blocks=40)})
    assert "not even one clip fits" in advice(wider, LATENT, GPUS["4090"], 1)


@pytest.mark.parametrize("name", ["ucf101-sd", "ucf101-cosmos", "ucf101-cosmos-class", "k600-omni"])
def test_the_papers_runs_fit_eight_gpus_of_80_gb(name: str) -> None:
    from magi.cli.assemble import planned_latent

    config = preset(name)
    assert plan(config, planned_latent(config), GPUS["h100"], 8).fits


@pytest.mark.parametrize(
    ("gpus", "utilisation", "training", "message"),
    [
        (0, 0.4, {}, "--gpus 0: expected 1..128"),
        (129, 0.4, {}, "--gpus 129: expected 1..128"),
        (6, 0.4, {"parallel": "fsdp"}, "fsdp needs a divisor of training.batch 128"),
        (8, 40.0, {}, "--utilisation 40.0: expected a share"),
        (8, 0.0, {}, "--utilisation 0.0: expected a share"),
    ],
)
def test_impossible_plans(gpus: int, utilisation: float, training: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(changed(LARGE, **training), LATENT, GPUS["h200"], gpus, utilisation)
