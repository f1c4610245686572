"""Complete and masked teacher forcing: who sees whom, and that pruning the naive 2T layout is exact."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.masking import draw_mask, draw_mask_ratio
from magi.model.teacher_forcing import ForcedSequence, complete_teacher_forcing, masked_teacher_forcing

FRAMES, BATCH = 4, 2


def tiny_magi(teacher_forcing: str = "complete") -> Magi:
    config = ModelConfig(
        width=16,
        blocks=2,
        heads=2,
        head_width=16,
        head_blocks=2,
        frames=FRAMES,
        dropout=0.0,
        classes=3,
        class_tokens=2,
        teacher_forcing=teacher_forcing,
    )
    latent = LatentShape(frames=FRAMES, channels=2, height=4, width=4)
    model = Magi(config, latent, torch.Generator().manual_seed(0)).double()
    # Zero-initialised layers would hide every dependence.
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def inputs(model: Magi) -> tuple[Tensor, Tensor, Conditions]:
    generator = torch.Generator().manual_seed(1)
    tokens_BTNC = torch.randn(
        BATCH, FRAMES, model.tokens_per_frame, model.token_channels, dtype=torch.float64, generator=generator
    )
    ratio_T = draw_mask_ratio(BATCH * FRAMES, 1.0, 0.25, 0.4, generator)
    masked_BTN = draw_mask(ratio_T, model.tokens_per_frame, generator).unflatten(0, (BATCH, FRAMES))
    return tokens_BTNC, masked_BTN, Conditions(torch.tensor([1, 7]), torch.tensor([1, 5]), torch.tensor([0, 3]))


def naive_complete_teacher_forcing(tokens_BTNC: Tensor, masked_BTN: Tensor) -> ForcedSequence:
    """The paper's layout as it is written: all T observation frames, then all T masked frames."""
    frames = tokens_BTNC.shape[1]
    attend_SS = torch.zeros(2 * frames, 2 * frames, dtype=torch.bool)
    for i in range(frames):
        for k in range(frames):
            attend_SS[i, k] = k <= i
            attend_SS[frames + i, k] = k < i
        attend_SS[frames + i, frames + i] = True
    return ForcedSequence(
        tokens_BSNC=torch.cat([tokens_BTNC, tokens_BTNC], dim=1),
        masked_BSN=torch.cat([torch.zeros_like(masked_BTN), masked_BTN], dim=1),
        observations=frames,
        time_S=torch.arange(frames).repeat(2),
        attend=attend_SS,
    )


def indices(picked_BUN: Tensor) -> Tensor:
    """Of the true ones in the flattened tokens."""
    return picked_BUN.flatten().nonzero().squeeze(1)


def test_the_mask_is_the_papers() -> None:
    sequence = complete_teacher_forcing(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, dtype=torch.bool))
    assert sequence.attend_SS.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert sequence.time_S.tolist() == [0, 1, 0, 1, 2]
    naive = naive_complete_teacher_forcing(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, dtype=torch.bool))
    assert int(naive.attend_SS.sum()) == 3 * 4
    masked = masked_teacher_forcing(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, dtype=torch.bool))
    assert masked.attend_SS.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_one_frame_is_image_generation() -> None:
    sequence = complete_teacher_forcing(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool))
    assert sequence.attend_SS.tolist() == [[True]] and sequence.observations == 0


def test_pruned_layout_equals_the_naive_one() -> None:
    """Outputs and all parameter gradients agree in float64, so leaving the last observation frame out is exact."""
    model = tiny_magi()
    tokens_BTNC, masked_BTN, conditions = inputs(model)
    noisy_RMC = torch.randn(2, int(masked_BTN.sum()), model.token_channels, dtype=torch.float64)
    timestep_RM = torch.randint(1000, noisy_RMC.shape[:2])
    results = []
    for layout in (complete_teacher_forcing, naive_complete_teacher_forcing):
        model.zero_grad()
        sequence = layout(tokens_BTNC, masked_BTN)
        prediction = model(sequence, conditions, indices(masked_BTN), noisy_RMC, timestep_RM)
        prediction.square().sum().backward()
        results.append((prediction, [parameter.grad for parameter in model.parameters()]))
    (pruned, pruned_gradients), (naive, naive_gradients) = results
    torch.testing.assert_close(pruned, naive, rtol=1e-12, atol=1e-12)
    for a, b in zip(pruned_gradients, naive_gradients, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * float(b.abs().max()) + 1e-12)


def _gradient_per_slot(model: Magi, sequence: ForcedSequence, masked_BTN: Tensor, frame: int) -> Tensor:
    """|d prediction of ``frame`` / d tokens| of each slot, (S,)."""
    tokens_BSNC = sequence.tokens_BSNC.clone().requires_grad_()
    conditions = inputs(model)[2]
    picked_BTN = torch.zeros_like(masked_BTN)
    picked_BTN[:, frame] = masked_BTN[:, frame]
    noisy_RMC = torch.zeros(1, int(picked_BTN.sum()), model.token_channels, dtype=torch.float64)
    timestep_RM = torch.full(noisy_RMC.shape[:2], 500)
    picked_M, differentiable = indices(picked_BTN), replace(sequence, tokens_BSNC=tokens_BSNC)
    prediction = model(differentiable, conditions, picked_M, noisy_RMC, timestep_RM)
    (gradient,) = torch.autograd.grad(prediction.sum(), tokens_BSNC)
    return gradient.abs().sum(dim=(0, 2, 3))


@pytest.mark.parametrize("frame", range(FRAMES))
def test_complete_teacher_forcing_is_causal(frame: int) -> None:
    """Frame j depends on the complete copies of frames < j and on its own masked copy, and on nothing else."""
    model = tiny_magi()
    tokens_BTNC, masked_BTN, _ = inputs(model)
    masked_BTN[:, :, 0] = False  # so that every frame shows a token
    sequence = complete_teacher_forcing(tokens_BTNC, masked_BTN)
    gradient_S = _gradient_per_slot(model, sequence, masked_BTN, frame)
    observed, predicted = gradient_S[: FRAMES - 1], gradient_S[FRAMES - 1 :]
    assert (observed[:frame] > 0).all() and (observed[frame:] == 0).all()
    assert [float(g) > 0 for g in predicted] == [k == frame for k in range(FRAMES)]


@pytest.mark.parametrize("frame", range(FRAMES))
def test_masked_teacher_forcing_is_causal(frame: int) -> None:
    model = tiny_magi("masked")
    tokens_BTNC, masked_BTN, _ = inputs(model)
    masked_BTN[:, :, 0] = False
    sequence = masked_teacher_forcing(tokens_BTNC, masked_BTN)
    gradient_S = _gradient_per_slot(model, sequence, masked_BTN, frame)
    assert [float(g) > 0 for g in gradient_S] == [k <= frame for k in range(FRAMES)]


def test_masked_tokens_reveal_nothing_of_themselves() -> None:
    """The content under the mask of the predicted slots has no influence."""
    model = tiny_magi()
    tokens_BTNC, masked_BTN, conditions = inputs(model)
    noisy_RMC = torch.zeros(1, int(masked_BTN.sum()), model.token_channels, dtype=torch.float64)
    timestep_RM = torch.full(noisy_RMC.shape[:2], 500)
    sequence = complete_teacher_forcing(tokens_BTNC, masked_BTN)
    changed_BSNC = torch.where(sequence.masked_BSN[..., None], 9.0, sequence.tokens_BSNC)
    picked_M = indices(masked_BTN)
    plain = model(sequence, conditions, picked_M, noisy_RMC, timestep_RM)
    changed = model(replace(sequence, tokens_BSNC=changed_BSNC), conditions, picked_M, noisy_RMC, timestep_RM)
    assert torch.equal(plain, changed)
