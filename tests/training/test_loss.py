from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.model.conditioning import Conditions
from magi.model.objectives.ddpm import cosine_schedule
from magi.model.teacher_forcing import ForcedSequence
from magi.training.batch import Batch, make_batch
from magi.training.corruption import TokenShape, draw_corruption
from magi.training.loss import MagiLoss
from tests.fakes.training_runs import Clips, tiny_config

SHAPE = TokenShape(frames=3, tokens=4, channels=8)
CPU = torch.device("cpu")
Model = Callable[[ForcedSequence, Conditions, Tensor, Tensor, Tensor], Tensor]


def batch_and_tokens(**model: Any) -> tuple[Batch, Tensor]:
    config = tiny_config(model=model)
    draws = [draw_corruption(config.training, config.model, SHAPE, sample) for sample in range(5)]
    batch = make_batch([Clips()[sample] for sample in range(5)], draws, config.model)
    return batch, torch.randn(5, 3, 4, 8, generator=torch.Generator().manual_seed(0))


def perfect(tokens_BTNC: Tensor) -> Model:
    """Solves x_t = sqrt(a) x_0 + sqrt(1 - a) noise for the noise, knowing the clean tokens."""
    alphas_bar = cosine_schedule(100).alphas_bar.float()

    def model(_: ForcedSequence, __: Conditions, picked_M: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        a = alphas_bar[timestep][..., None]
        noise = (noisy - a.sqrt() * tokens_BTNC.flatten(0, 2)[picked_M]) / (1 - a).sqrt()
        return torch.cat([noise, torch.zeros_like(noise)], dim=-1)

    return model


def wrong_by_one(tokens_BTNC: Tensor) -> Model:
    return lambda *inputs: perfect(tokens_BTNC)(*inputs) + torch.cat([torch.ones(8), torch.zeros(8)])


def test_noise_token_and_timestep_of_a_row_belong_together() -> None:
    """A model that knows the clean tokens predicts every noise exactly, however the rows are ordered."""
    batch, tokens_BTNC = batch_and_tokens()
    loss = MagiLoss(tiny_config().model, CPU)
    total = int(batch.masked_BUN.sum())
    assert loss(perfect(tokens_BTNC), tokens_BTNC, batch, total).mse < 1e-4
    assert loss(perfect(tokens_BTNC.roll(1, 0)), tokens_BTNC, batch, total).mse > 1


def test_loss_is_the_mean_over_the_masked_tokens_of_the_step() -> None:
    batch, tokens_BTNC = batch_and_tokens()
    loss = MagiLoss(tiny_config().model, CPU)
    total = int(batch.masked_BUN.sum())
    assert loss(wrong_by_one(tokens_BTNC), tokens_BTNC, batch, total).mse == pytest.approx(1, abs=1e-2)
    assert loss(wrong_by_one(tokens_BTNC), tokens_BTNC, batch, 4 * total).mse == pytest.approx(0.25, abs=1e-2)


@pytest.mark.parametrize("teacher_forcing", ["complete", "masked"])
def test_model_is_asked_for_the_masked_tokens_given_noisy_observations(teacher_forcing: str) -> None:
    """Predicted slots hold clean tokens and their masks; only observations have noise, of the clip's amplitude."""
    batch, tokens_BTNC = batch_and_tokens(teacher_forcing=teacher_forcing)
    seen: list[tuple[ForcedSequence, Tensor]] = []

    def model(sequence: ForcedSequence, _: Conditions, picked_M: Tensor, noisy: Tensor, __: Tensor) -> Tensor:
        seen.append((sequence, picked_M))
        return torch.zeros(*noisy.shape[:-1], 16)

    MagiLoss(tiny_config(model={"teacher_forcing": teacher_forcing}).model, CPU)(model, tokens_BTNC, batch, 1)
    sequence, picked_M = seen[0]
    assert torch.equal(
        torch.zeros(5 * 3 * 4, dtype=torch.bool).index_fill(0, picked_M, True), batch.masked_BUN.flatten()
    )
    observations = 2 if teacher_forcing == "complete" else 0
    assert sequence.observations == observations
    assert torch.equal(sequence.tokens_BSNC[:, observations:], tokens_BTNC)
    assert torch.equal(sequence.masked_BSN[:, observations:], batch.masked_BUN)
    added = sequence.tokens_BSNC[:, :observations] - tokens_BTNC[:, :observations]
    expected = batch.amplitude_B[:, None, None, None] * batch.noise_BTNC[:, :observations]
    assert torch.allclose(added, expected, atol=1e-6)


def test_a_bfloat16_prediction_has_a_float32_loss() -> None:
    batch, tokens_BTNC = batch_and_tokens()
    loss = MagiLoss(tiny_config().model, CPU)
    parts = loss(lambda *inputs: wrong_by_one(tokens_BTNC)(*inputs).bfloat16(), tokens_BTNC, batch, 1)
    assert parts.mse.dtype == parts.vlb.dtype == torch.float32


def test_clips_add_up() -> None:
    """Loss of a batch = sum of the losses of its clips, with the step's total as the common denominator."""
    batch, tokens_BTNC = batch_and_tokens()
    loss = MagiLoss(tiny_config().model, CPU)

    def one(clip: int) -> Batch:
        parts = {name: getattr(batch, name)[clip : clip + 1] for name in ("masked_BUN", "amplitude_B", "noise_BTNC")}
        draws = {name: getattr(batch, name)[:, clip : clip + 1] for name in ("timestep_RBUN", "diffusion_noise_RBUNC")}
        picked_M = parts["masked_BUN"].flatten().nonzero().squeeze(1)
        return replace(batch, picked_M=picked_M, **parts, **draws)

    def zero(_: ForcedSequence, __: Conditions, ___: Tensor, noisy: Tensor, ____: Tensor) -> Tensor:
        return torch.zeros(*noisy.shape[:-1], 16)

    whole = loss(zero, tokens_BTNC, batch, 50)
    clips = [loss(zero, tokens_BTNC[clip : clip + 1], one(clip), 50) for clip in range(5)]
    assert sum(float(part.mse) for part in clips) == pytest.approx(float(whole.mse), rel=1e-5)
    assert sum(float(part.vlb) for part in clips) == pytest.approx(float(whole.vlb), rel=1e-4)
