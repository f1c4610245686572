"""Several masked views of a clip share its complete frames: the same gradient as separate masks, for fewer slots."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from magi.config import Config, LatentShape, ModelConfig, TrainingConfig
from magi.config_files import parse_config
from magi.latents.dataset import LatentClip
from magi.model.magi import Magi
from magi.model.teacher_forcing import complete_teacher_forcing, masked_teacher_forcing
from magi.training.batch import Batch, make_batch
from magi.training.corruption import TokenShape, draw_corruption, masked_tokens
from magi.training.loss import MagiLoss
from tests.fakes.training_runs import Clips, tiny_config

SHAPE = TokenShape(frames=3, tokens=4, channels=8)
CPU = torch.device("cpu")
VIEWS = 3


def batch_of(masked_views: int, clips: int = 2) -> tuple[Config, Batch]:
    config = tiny_config(masked_views=masked_views, mask_ratio_min=0.3, mask_ratio_std=0.6)
    draws = [draw_corruption(config.training, config.model, SHAPE, sample) for sample in range(clips)]
    return config, make_batch([Clips()[sample] for sample in range(clips)], draws, config.model)


def doubled(batch: Batch) -> Batch:
    return batch._each(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def only_view(batch: Batch, view: int) -> Batch:
    """The batch with one of its masked views."""
    here = slice(view * SHAPE.frames, (view + 1) * SHAPE.frames)
    masked_BUN = batch.masked_BUN[:, here]
    return replace(
        batch,
        masked_BUN=masked_BUN,
        picked_M=masked_BUN.flatten().nonzero().squeeze(1),
        timestep_RBUN=batch.timestep_RBUN[:, :, here],
        diffusion_noise_RBUNC=batch.diffusion_noise_RBUNC[:, :, here],
    )


def model_and_tokens(config: Config) -> tuple[Magi, Tensor]:
    latent = LatentShape(frames=3, channels=2, height=4, width=4)
    model = Magi(config.model.model_copy(update={"blocks": 2}), latent, torch.Generator().manual_seed(1)).double()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens_BTNC = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, tokens_BTNC


def gradients(model: Magi, config: Config, tokens_BTNC: Tensor, batch: Batch, total: float) -> list[Tensor]:
    loss = MagiLoss(config.model, CPU)(model, tokens_BTNC, batch, total)  # type: ignore[arg-type]
    return list(torch.autograd.grad(loss.mse + loss.vlb, list(model.parameters())))


def test_gradient_is_the_mean_over_separate_masks() -> None:
    """In float64, and of every parameter; each mask alone is weighed by the mean number of masked tokens."""
    config, batch = batch_of(VIEWS)
    batch = doubled(batch)
    model, tokens_BTNC = model_and_tokens(config)
    total = len(batch.picked_M)
    together = gradients(model, config, tokens_BTNC, batch, total)
    alone = [gradients(model, config, tokens_BTNC, only_view(batch, view), total / VIEWS) for view in range(VIEWS)]
    assert len({len(only_view(batch, view).picked_M) for view in range(VIEWS)}) > 1
    for shared, *separate in zip(together, *alone, strict=True):
        mean = torch.stack(separate).mean(dim=0)
        torch.testing.assert_close(shared, mean, rtol=1e-9, atol=1e-12 + 1e-10 * float(mean.abs().max()))


def test_views_have_masks_timesteps_and_noise_of_their_own() -> None:
    _, batch = batch_of(VIEWS)
    views = [only_view(batch, view) for view in range(VIEWS)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(views[first].masked_BUN, views[second].masked_BUN)
        assert not torch.equal(views[first].timestep_RBUN, views[second].timestep_RBUN)
        assert not torch.equal(views[first].diffusion_noise_RBUNC, views[second].diffusion_noise_RBUNC)


def test_a_view_does_not_depend_on_how_many_there_are() -> None:
    """Draws are a pure function of (seed, sample, view): the first is the one of a clip with one mask."""
    _, three = batch_of(VIEWS)
    _, one = batch_of(1)
    for name in ("masked_BUN", "timestep_RBUN", "diffusion_noise_RBUNC", "amplitude_B", "noise_BTNC", "picked_M"):
        assert torch.equal(getattr(only_view(three, 0), name), getattr(one, name)), name


def test_tokens_of_all_views_count() -> None:
    config, batch = batch_of(VIEWS)
    assert masked_tokens(config.training, SHAPE, range(2)) == int(batch.masked_BUN.sum()) == len(batch.picked_M)


def test_masked_teacher_forcing_has_one_view() -> None:
    with pytest.raises(ValueError, match=r"masked_views 2 needs model\.teacher_forcing complete"):
        parse_config({"model": {"teacher_forcing": "masked"}, "training": {"masked_views": 2}}, "run.yaml")
    tokens_BTNC = torch.zeros(1, 3, 4, 8)
    with pytest.raises(ValueError, match="one view of 3 frames, got 6 slots"):
        masked_teacher_forcing(tokens_BTNC, torch.ones(1, 6, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="5 predicted slots are no multiple of the 3 frames"):
        complete_teacher_forcing(tokens_BTNC, torch.ones(1, 5, 4, dtype=torch.bool))


@pytest.mark.parametrize(("views", "most"), [(1, 1.92), (4, 1.25)])
def test_a_masked_clip_costs_little_more_than_masked_teacher_forcing(views: int, most: float) -> None:
    """Counted operations, forward and backward, of 16 frames; the head has the same work in both."""
    config = Config(model=ModelConfig(width=64, blocks=4, heads=2, head_width=8, head_blocks=1, dropout=0.0))
    model = Magi(config.model, LatentShape(frames=16, channels=1, height=4, width=4), torch.Generator())
    clip = LatentClip(np.random.default_rng(0).standard_normal((16, 1, 4, 4), np.float32), 1, None, 0)
    tokens_BTNC = model.patchify(torch.from_numpy(clip.latents_TCHW)[None])

    def operations(teacher_forcing: str, masks: int) -> float:
        training = TrainingConfig(masked_views=masks, diffusion_batch_mul=1)
        shape = config.model.model_copy(update={"teacher_forcing": teacher_forcing})
        draws = [draw_corruption(training, shape, TokenShape(16, 4, 4), 0)]
        batch = make_batch([clip], draws, shape)
        with FlopCounterMode(display=False) as counter:
            parts = MagiLoss(shape, CPU)(model, tokens_BTNC, batch, len(batch.picked_M))
            (parts.mse + parts.vlb).backward()
        return counter.get_total_flops() / masks

    ratio = operations("complete", views) / operations("masked", 1)
    assert 0.93 * most < ratio <= most
