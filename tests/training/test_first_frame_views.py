"""Further masked views of a clip's first frame: the gradient of separate first frames, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from magi.config_files import parse_config
from magi.model.teacher_forcing import SlotPattern, complete_teacher_forcing, masked_teacher_forcing
from magi.model.temporal.slot_attention import dense_slot_attention, split_slot_attention
from magi.training.batch import make_batch
from magi.training.corruption import draw_corruption, masked_tokens
from magi.training.loss import MagiLoss
from tests.fakes.training_runs import Clips, tiny_config
from tests.training.test_masked_views import CPU, SHAPE, batch_of, doubled, gradients, model_and_tokens

EXTRA = 4


def batch_with(extra: int):  # type: ignore[no-untyped-def]
    config = tiny_config(first_frame_views=extra, mask_ratio_min=0.3, mask_ratio_std=0.6)
    draws = [draw_corruption(config.training, config.model, SHAPE, sample) for sample in range(2)]
    return config, make_batch([Clips()[sample] for sample in range(2)], draws, config.model)


@pytest.mark.parametrize("temporal", ["softmax", "gated_linear"])
def test_gradient_is_that_of_the_clip_and_of_first_frames_alone(temporal: str) -> None:
    """In float64, and of every parameter: the parts are added, each weighed by its masked tokens."""
    config, batch = batch_with(EXTRA)
    config = config.model_copy(update={"model": config.model.model_copy(update={"temporal": temporal})})
    batch = doubled(batch)
    model, tokens_BTNC = model_and_tokens(config)
    total, cut = len(batch.picked_M), SHAPE.frames

    def part(slots: slice, frames: int) -> list[torch.Tensor]:
        masked_BUN = batch.masked_BUN[:, slots]
        small = replace(
            batch,
            masked_BUN=masked_BUN,
            picked_M=masked_BUN.flatten().nonzero().squeeze(1),
            timestep_RBUN=batch.timestep_RBUN[:, :, slots],
            diffusion_noise_RBUNC=batch.diffusion_noise_RBUNC[:, :, slots],
        )
        return gradients(model, config, tokens_BTNC[:, :frames], small, total)

    loss = MagiLoss(config.model, CPU, EXTRA)(model, tokens_BTNC, batch, total)
    together = torch.autograd.grad(loss.mse + loss.vlb, list(model.parameters()))
    # Each further view is a clip of one frame, whose clean tokens are those of frame 0.
    alone = [part(slice(cut + number, cut + number + 1), 1) for number in range(EXTRA)]
    for shared, clip, *firsts in zip(together, part(slice(0, cut), cut), *alone, strict=True):
        expected = clip + sum(firsts)
        torch.testing.assert_close(shared, expected, rtol=1e-9, atol=1e-12 + 1e-10 * float(expected.abs().max()))


def test_the_rest_of_a_clip_is_drawn_as_without_them() -> None:
    _, more = batch_with(EXTRA)
    _, plain = batch_of(1)
    cut = slice(0, SHAPE.frames)
    assert torch.equal(more.masked_BUN[:, cut], plain.masked_BUN)
    assert torch.equal(more.timestep_RBUN[:, :, cut], plain.timestep_RBUN)
    assert torch.equal(more.diffusion_noise_RBUNC[:, :, cut], plain.diffusion_noise_RBUNC)
    assert torch.equal(more.noise_BTNC, plain.noise_BTNC) and torch.equal(more.amplitude_B, plain.amplitude_B)
    assert more.masked_BUN.shape[1] == SHAPE.frames + EXTRA
    assert len({tuple(noise.flatten().tolist()) for noise in more.diffusion_noise_RBUNC[0, 0]}) == SHAPE.frames + EXTRA


def test_their_tokens_count_in_the_steps_mean() -> None:
    config, batch = batch_with(EXTRA)
    assert masked_tokens(config.training, SHAPE, range(2)) == int(batch.masked_BUN.sum()) == len(batch.picked_M)


@pytest.mark.parametrize("pruned", [False, True])
def test_paths_of_attention_agree_and_such_a_slot_sees_itself_alone(pruned: bool) -> None:
    pattern, width, heads = SlotPattern(causal=2, frames=3, views=2, alone=2), 8, 2
    assert pattern.slots == 10 and pattern.mask_SS()[-2:].nonzero().tolist() == [[0, 8], [1, 9]]
    assert not pattern.mask_SS()[:-2, -2:].any()
    draw = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 10, 3, 3 * width, generator=draw, dtype=torch.float64)
    query = projected[:, 2:, :, :width].contiguous() if pruned else None
    if pruned:
        projected = projected[..., width:].contiguous()
    dense = dense_slot_attention(query, projected, pattern, heads)
    torch.testing.assert_close(split_slot_attention(query, projected, pattern, heads), dense)
    torch.testing.assert_close(dense[:, -2:], projected[:, -2:, :, -width:])


def test_masked_teacher_forcing_has_none() -> None:
    with pytest.raises(ValueError, match=r"first_frame_views 2: masked teacher forcing has one view of each frame"):
        parse_config({"model": {"teacher_forcing": "masked"}, "training": {"first_frame_views": 2}}, "run.yaml")
    with pytest.raises(ValueError, match="one view of 3 frames"):
        masked_teacher_forcing(torch.zeros(1, 3, 4, 8), torch.ones(1, 3, 4, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="no multiple"):
        complete_teacher_forcing(torch.zeros(1, 3, 4, 8), torch.ones(1, 2, 4, dtype=torch.bool), 2)
