"""Actions at sampling: asked for in time, obeyed by the frame they lead to, and unknown to all before it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions, action_rows, no_action
from magi.model.magi import Magi
from magi.sampling.actions import action_source
from magi.sampling.generate import generate
from magi.sampling.prepared import SamplerCache

ACTIONS, FRAMES, CONTEXT = 3, 9, 2
FAST = SamplingConfig(iterations=2, steps=3)
WINDOW = FAST.changed(longer="window", window_keep=2)


def tiny_model() -> Magi:
    config = ModelConfig(
        width=16, blocks=2, heads=2, patch_size=1, frames=4, head_width=16, head_blocks=1, actions=ACTIONS,
        interval_vocabulary=2, dropout=0.0, diffusion_steps=50,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=4, channels=2, height=2, width=3), generator).double()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def drawn(videos: int) -> Tensor:
    """Rows (B, T, A + 1); the first frame has no action."""
    number_BT = torch.randint(ACTIONS, (videos, FRAMES), generator=torch.Generator().manual_seed(3))
    rows_BTA = torch.eye(ACTIONS)[number_BT]
    rows_BTA[:, 0] = torch.nan
    return action_rows(rows_BTA)


def rollout(rows_BTA: Tensor, config: SamplingConfig = WINDOW, live: bool = True, **changes: Any) -> Tensor:
    videos = len(rows_BTA)
    ones_B = torch.ones(videos, dtype=torch.long)
    latents = torch.randn(8, CONTEXT, 2, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    arguments: dict[str, Any] = {
        "frames": FRAMES,
        "conditions": Conditions(ones_B, ones_B, action_BA=no_action(rows_BTA[:, 0]) if live else rows_BTA),
        "generators": [torch.Generator().manual_seed(seed) for seed in range(videos)],
        "config": config,
        "context_BTCHW": latents[:videos],
        "next_action": (lambda number: rows_BTA[:, number]) if live else None,
    }
    return torch.stack(list(generate(tiny_model(), **arguments | changes)), dim=1)


@pytest.mark.parametrize("config", [FAST, WINDOW, WINDOW.changed(guidance=2.0)])
@pytest.mark.parametrize("context", [True, False])
def test_actions_asked_for_frame_by_frame_are_those_given_beforehand(config: SamplingConfig, context: bool) -> None:
    changes: dict[str, Any] = {} if context else {"context_BTCHW": None}
    rows_BTA = drawn(2)
    torch.testing.assert_close(
        rollout(rows_BTA, config, **changes), rollout(rows_BTA, config, live=False, **changes), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("changed", range(CONTEXT, FRAMES))
def test_an_action_changes_its_frame_and_none_before(changed: int) -> None:
    rows_BTA = drawn(2)
    other_BTA = rows_BTA.clone()
    other_BTA[0, changed] = action_rows(torch.eye(ACTIONS))[(int(rows_BTA[0, changed].argmax()) + 1) % ACTIONS]
    one, other = rollout(rows_BTA), rollout(other_BTA)
    change_BT = (one - other).abs().amax(dim=(2, 3, 4))
    assert torch.equal(change_BT[1], torch.zeros(FRAMES - CONTEXT, dtype=torch.float64)), "another player's"
    assert torch.equal(change_BT[0, : changed - CONTEXT], torch.zeros(changed - CONTEXT, dtype=torch.float64))
    assert float(change_BT[0, changed - CONTEXT]) > 1e-4, "the frame it leads to"


def test_an_action_is_asked_for_after_the_frame_before_it_was_shown() -> None:
    log: list[str] = []
    rows_BTA = drawn(1)

    def ask(number: int) -> Tensor:
        log.append(f"asked {number}")
        return rows_BTA[:, number]

    ones_B = torch.ones(1, dtype=torch.long)
    frames = generate(
        tiny_model(), frames=4, conditions=Conditions(ones_B, ones_B, action_BA=no_action(rows_BTA[:, 0])),
        generators=[torch.Generator().manual_seed(0)], config=FAST, next_action=ask,
    )  # fmt: skip
    for number, _ in enumerate(frames):
        log.append(f"frame {number}")
    assert log == [f"{what} {number}" for number in range(4) for what in ("asked", "frame")]


def test_a_held_sampler_forgets_the_actions_of_the_last_video() -> None:
    samplers, rows_BTA = SamplerCache(), drawn(2)
    first = rollout(rows_BTA, samplers=samplers)
    rollout(rows_BTA.flip(1), samplers=samplers)
    assert torch.equal(rollout(rows_BTA, samplers=samplers), first)


def test_guidance_strengthens_the_action() -> None:
    rows_BTA = drawn(2)
    assert not torch.equal(rollout(rows_BTA, WINDOW.changed(guidance=3.0)), rollout(rows_BTA))
    nothing_BTA = no_action(rows_BTA)
    torch.testing.assert_close(
        rollout(nothing_BTA, WINDOW.changed(guidance=3.0)), rollout(nothing_BTA), atol=1e-9, rtol=0
    )


# What a user gives


def source(actions: Any, frames: int = 3, latent_frames: int = 3, batch: int = 2) -> Tensor:
    ask = action_source(actions, 2, frames, latent_frames, batch)
    assert ask is not None
    return torch.stack([ask(number) for number in range(latent_frames)], dim=1)


LEFT, RIGHT, NONE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "actions",
    [
        [0, 1, None],
        [1, 1, -1],
        np.array([0, 1, -1, 0, 0]),
        [[1.0, 0.0], [0.0, 1.0], None],
        [[0, 1, -1], [0, 1, -1]],
        np.array([[[1.0, 0], [0, 1], [np.nan, np.nan]]] * 2),
        torch.tensor([0, 1, -1]),
        lambda number: [None, 1, None][number],
        lambda number: [None, [1, 1], [-1, None]][number],
        lambda number: [None, np.array([0.0, 1.0]), None][number],
        lambda number: [None, [[0.0, 1.0], [0.0, 1.0]], None][number],
    ],
)
def test_every_form_of_actions(actions: Any) -> None:
    assert source(actions).tolist() == [[NONE, RIGHT, NONE]] * 2


def test_each_video_has_its_own() -> None:
    assert source([[0, 0, 1], [0, 1, 0]]).tolist() == [[NONE, LEFT, RIGHT], [NONE, RIGHT, LEFT]]
    assert source(lambda number: [0, 1]).tolist() == [[NONE, LEFT, LEFT], [NONE, RIGHT, RIGHT]]


def test_a_latent_frame_has_the_mean_of_its_frames() -> None:
    assert source([0, 0, 1, 1, 1], frames=5).tolist() == [[NONE, [0.5, 0.5, 0.0], RIGHT]] * 2


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 1], "of 2 frames, but 3 are asked for"),
        ([0, 1, 2], "action 2 is 2, not one of 0..1"),
        ([[1.0, 0.0, 0.0]] * 3, "an action has 3 numbers, expected 2"),
        ([[0, 0, 0]] * 3, "expected 1 or 2"),
        (["left"] * 3, "expected whole numbers"),
        ([[1.0, float("nan")]] * 3, "not finite"),
        ("left", "expected whole numbers"),
        ({}, "expected whole numbers"),
        (lambda number: 7, "actions of frame 1: action 0 is 7"),
        (lambda number: "left", "actions of frame 1: expected whole numbers"),
        (lambda number: [0, 1, 1], "actions of frame 1: expected 1 or 2"),
    ],
)
def test_actions_that_do_not_fit_are_one_line(actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        source(actions)
    assert "\n" not in str(error.value)


def test_a_model_without_actions_takes_none() -> None:
    assert action_source(None, 0, 3, 3, 1) is None
    with pytest.raises(ValueError, match="this model has none; leave them out"):
        action_source([0, 0, 0], 0, 3, 3, 1)
    ones_B = torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match="conditions must have actions if and only if the model has"):
        generate(
            tiny_model(), frames=2, conditions=Conditions(ones_B, ones_B), generators=[torch.Generator()], config=FAST
        )
