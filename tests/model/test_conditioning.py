"""Conditions that vary by frame: causal in the training layout, and free where they are constant."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditioning, Conditions, action_rows, no_action
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


# Actions


def acting_model(forcing: str) -> Magi:
    config = ModelConfig(
        width=16, blocks=2, heads=2, head_width=16, head_blocks=1, frames=FRAMES, dropout=0.0, actions=2,
        teacher_forcing=forcing,  # type: ignore[arg-type]
    )  # fmt: skip
    latent = LatentShape(frames=FRAMES, channels=2, height=4, width=4)
    model = Magi(config, latent, torch.Generator().manual_seed(0)).double()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize(("forcing", "force", "views"), LAYOUTS)
@pytest.mark.parametrize("changed", range(FRAMES))
def test_an_action_is_causal_in_training(forcing: str, force: Forcing, views: int, changed: int) -> None:
    model = acting_model(forcing)
    rows_BTA = action_rows(torch.tensor([[[torch.nan] * 2, [1, 0], [0, 1], [0.5, 0.5]]] * 2, dtype=torch.float64))
    other_BTA = rows_BTA.clone()
    other_BTA[0, changed] = torch.tensor([0.2, 0.8, 0])
    given = replace(CONSTANT, label_B=None, action_BA=rows_BTA)
    one = prediction(model, force, views, given)
    other = prediction(model, force, views, replace(given, action_BA=other_BTA))
    assert torch.equal(one[1], other[1])
    for view in range(views):
        slots = slice(view * FRAMES, (view + 1) * FRAMES)
        change_T = (one[0, slots] - other[0, slots]).abs().amax(dim=(1, 2))
        assert torch.equal(change_T[:changed], torch.zeros(changed, dtype=torch.float64))
        assert bool((change_T[changed:] > 1e-6).all()) and float(change_T[changed]) > 1e-3


def test_rows_of_actions_say_where_there_is_none() -> None:
    rows = action_rows(torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]]))
    assert rows.tolist() == [[1, 0, 0], [0, 0, 1]] and no_action(rows).tolist() == [[0, 0, 1]] * 2


def test_the_mean_of_actions_has_the_mean_of_their_embeddings_and_none_is_another() -> None:
    conditioning = Conditioning(ModelConfig(width=16, heads=2, actions=2))
    assert conditioning.tokens == 2
    actions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [torch.nan, torch.nan]]] * 2)
    given = Conditions(torch.tensor([1, 7]), torch.tensor([1, 5]), action_BA=action_rows(actions))
    tokens_BFKD, added_BFD = conditioning(given)
    for values_BFD in (tokens_BFKD[:, :, 1], added_BFD):
        torch.testing.assert_close(values_BFD[:, 2], values_BFD[:, :2].mean(1))
        assert not torch.allclose(values_BFD[:, 3], values_BFD[:, 2], atol=1e-3)


def test_actions_are_cut_and_left_out_with_the_other_conditions() -> None:
    rows_BTA = action_rows(torch.arange(16.0).view(2, 4, 2))
    given = replace(CONSTANT, action_BA=rows_BTA)
    assert given.frames == 4 and replace(CONSTANT, action_BA=rows_BTA[:, 0]).frames is None
    assert given.frame(2).action_BA.tolist() == [[4, 5, 0], [12, 13, 0]]
    assert given.between(1, 3).action_BA.shape == (2, 2, 3)
    nothing = given.null(ModelConfig(classes=CLASSES, actions=2))
    assert nothing.action_BA[..., -1].eq(1).all() and nothing.action_BA[..., :-1].eq(0).all()
    assert nothing.label_B.tolist() == [CLASSES] * 2 and given.can_guide
    assert not replace(CONSTANT, label_B=None).can_guide
