"""Training and sampling meet: one clip is reproduced from its first frame after a short training."""

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig, SamplingConfig, TrainingConfig
from magi.latents.dataset import LatentClip
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.sampling.generate import generate
from magi.training.batch import make_batch
from magi.training.corruption import TokenShape, draw_corruption
from magi.training.loss import MagiLoss

FRAMES, SIZE, STEPS = 5, 8, 250
LATENT = LatentShape(frames=FRAMES, channels=1, height=SIZE, width=SIZE)


def moving_square() -> Tensor:
    """A bright square that moves one pixel a frame, latents_TCHW in [-1, 1]."""
    latents_TCHW = torch.full((FRAMES, 1, SIZE, SIZE), -1.0)
    for frame in range(FRAMES):
        latents_TCHW[frame, 0, 2:5, frame : frame + 3] = 1.0
    return latents_TCHW


@pytest.mark.parametrize("temporal", ["softmax", "gated_linear"])
def test_one_clip_is_reproduced_from_its_first_frame(temporal: str) -> None:
    model_config = ModelConfig(
        width=48, blocks=2, heads=4, head_width=48, head_blocks=2, frames=FRAMES, dropout=0.0, noise_max=0.1,
        patch_size=4, temporal=temporal,
    )  # fmt: skip
    training = TrainingConfig(batch=8, learning_rate=3e-3)
    latents_TCHW = moving_square()
    model = Magi(model_config, LATENT, torch.Generator().manual_seed(0))
    loss = MagiLoss(model_config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.95))
    shape = TokenShape(FRAMES, model.tokens_per_frame, model.token_channels)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, 2 * (STEPS - step) / STEPS)
        samples = range(step * training.batch, (step + 1) * training.batch)
        clips = [LatentClip(latents_TCHW.numpy(), interval=1, label=None, sample=sample) for sample in samples]
        corruptions = [draw_corruption(training, model_config, shape, sample) for sample in samples]
        batch = make_batch(clips, corruptions, model_config)
        assert batch.latents_BTCHW is not None
        parts = loss(model, model.patchify(batch.latents_BTCHW), batch, int(batch.masked_BUN.sum()))
        optimizer.zero_grad()
        (parts.mse + parts.vlb).backward()
        optimizer.step()
    frames = generate(
        model,
        frames=FRAMES,
        conditions=Conditions(torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.long)),
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        config=SamplingConfig(iterations=4, steps=25),
        context_BTCHW=latents_TCHW[None, :1].expand(2, -1, -1, -1, -1),
    )
    generated_BTCHW = torch.stack(list(frames), dim=1)
    error = (generated_BTCHW - latents_TCHW[1:]).square().mean()
    frozen = (latents_TCHW[:1] - latents_TCHW[1:]).square().mean()
    assert error < 0.03 and frozen > 0.8, float(error)
