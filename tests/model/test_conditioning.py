"""Conditions that vary by frame: causal in the training layout, and free where they are constant."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditioning, Conditions
from magi.model.magi import Magi
from magi.model.teacher_forcing import ForcedSequence, complete_teacher_forcing, masked_teacher_forcing

FRAMES, CLASSES = 4, 3
CONSTANT = Conditions(torch.tensor([1, 7]), torch.tensor([1, 5]), torch.tensor([0, 3]))
BY_FRAME = replace(CONSTANT, label_B=torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]]))

Forcing = Callable[[Tensor, Tensor], ForcedSequence]


def tiny_model(forcing: str = "complete") -> Magi:
    config = ModelConfig(
        width=16, blocks=2, heads=2, head_width=16, head_blocks=1, frames=FRAMES, dropout=0.0, classes=CLASSES,
        class_tokens=2, teacher_forcing=forcing,  # type: ignore[arg-type]
    )  # fmt: skip
    latent = LatentShape(frames=FRAMES, channels=2, height=4, width=4)
    model = Magi(config, latent, torch.Generator().manual_seed(0)).double()
    for parameter in model.head.parameters():  # zero-initialised layers would hide every dependence
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def prediction(model: Magi, force: Forcing, views: int, conditions: Conditions) -> Tensor:
    """The head's output for every token of the predicted slots, (B, U, N, 2C)."""
    draw = torch.Generator().manual_seed(1)
    N, C = model.tokens_per_frame, model.token_channels
    tokens_BTNC = torch.randn(2, FRAMES, N, C, dtype=torch.float64, generator=draw)
    masked_BUN = torch.rand(2, views * FRAMES, N, generator=draw) < 0.7
    count = masked_BUN.numel()
    noisy_RMC = torch.randn(1, count, C, dtype=torch.float64, generator=draw)
    with torch.no_grad():
        sequence = force(tokens_BTNC, masked_BUN)
        found = model(sequence, conditions, torch.arange(count), noisy_RMC, torch.full((1, count), 500))
    return found.view(2, views * FRAMES, N, -1)


LAYOUTS = [("complete", complete_teacher_forcing, 1), ("complete", complete_teacher_forcing, 2)]
LAYOUTS.append(("masked", masked_teacher_forcing, 1))


@pytest.mark.parametrize(("forcing", "force", "views"), LAYOUTS)
@pytest.mark.parametrize("changed", range(FRAMES))
def test_a_condition_of_a_frame_is_causal_in_training(forcing: str, force: Forcing, views: int, changed: int) -> None:
    model = tiny_model(forcing)
    assert BY_FRAME.label_B is not None
    label_BT = BY_FRAME.label_B.clone()
    label_BT[0, changed] = (label_BT[0, changed] + 1) % CLASSES
    one = prediction(model, force, views, BY_FRAME)
    other = prediction(model, force, views, replace(BY_FRAME, label_B=label_BT))
    assert torch.equal(one[1], other[1]), "clips do not share conditions"
    for view in range(views):
        slots = slice(view * FRAMES, (view + 1) * FRAMES)
        change_T = (one[0, slots] - other[0, slots]).abs().amax(dim=(1, 2))
        assert torch.equal(change_T[:changed], torch.zeros(changed, dtype=torch.float64))
        assert float(change_T[changed]) > 1e-3, "the frame itself"
        assert bool((change_T[changed + 1 :] > 1e-6).all()), "later frames see it through the finished frame"


@pytest.mark.parametrize(("forcing", "force", "views"), LAYOUTS)
def test_constant_conditions_given_by_frame_are_the_constant_ones(forcing: str, force: Forcing, views: int) -> None:
    model = tiny_model(forcing)
    by_frame = CONSTANT.map(lambda values_B: values_B[:, None].expand(-1, FRAMES))
    assert torch.equal(prediction(model, force, views, CONSTANT), prediction(model, force, views, by_frame))


def test_what_is_constant_is_embedded_once() -> None:
    conditioning = Conditioning(ModelConfig(width=16, heads=2, classes=CLASSES, class_tokens=2))
    looked_up: list[tuple[int, ...]] = []
    for embedding in (conditioning.noise_level, conditioning.interval, conditioning.label):
        assert embedding is not None
        embedding.register_forward_pre_hook(lambda _, inputs: looked_up.append(tuple(inputs[0].shape)))
    tokens, added = conditioning(CONSTANT)
    assert looked_up == [(2,)] * 3 and tokens.shape == (2, 1, 3, 16) and added.shape == (2, 1, 16)
    looked_up.clear()
    tokens, added = conditioning(BY_FRAME)
    assert sorted(looked_up) == [(2,), (2,), (2, 4)] and tokens.shape == (2, 4, 3, 16) and added.shape == (2, 1, 16)


def test_every_tensor_is_mapped_joined_and_cut() -> None:
    assert CONSTANT.frames is None and BY_FRAME.frames == 4 and BY_FRAME.batch == 2
    twice = Conditions.cat([BY_FRAME, BY_FRAME.null(ModelConfig(classes=CLASSES))])
    assert twice.batch == 4 and twice.label_B is not None and twice.label_B[2:].eq(CLASSES).all()
    assert twice.interval_B.tolist() == [1, 7, 1, 7] and twice.noise_level_B.tolist() == [1, 5, 1, 5]
    assert BY_FRAME.frame(2).label_B.tolist() == [2, 0] and BY_FRAME.frame(2).interval_B.tolist() == [1, 7]
    assert BY_FRAME.between(1, 3).label_B.tolist() == [[1, 2], [1, 0]]
    doubled = BY_FRAME.map(lambda values: values * 2)
    assert doubled.interval_B.tolist() == [2, 14] and doubled.label_B.tolist() == [[0, 2, 4, 0], [2, 2, 0, 4]]
    without = replace(CONSTANT, label_B=None)
    assert without.map(lambda values: values + 1).label_B is None and without.frame(0).label_B is None
