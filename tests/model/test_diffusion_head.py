"""The diffusion head starts as zero, and hoisting its modulations out of the loop is exact."""

import torch
import torch.nn.functional as F

from magi.config import LatentShape, ModelConfig
from magi.model.diffusion_head import DiffusionHead
from magi.model.magi import Magi
from tests.model.test_teacher_forcing import tiny_magi


def test_zero_initialised_head_predicts_zero() -> None:
    config = ModelConfig(width=16, blocks=1, heads=2, head_width=16, frames=2)
    head = Magi(config, LatentShape(frames=2, channels=2, height=4, width=4)).head
    assert (head(torch.randn(5, 8), torch.arange(5), torch.randn(5, 16)) == 0).all()


def test_hoisted_modulations_equal_the_plain_forward() -> None:
    head = tiny_magi().head.float()
    z_MD, timestep_I = torch.randn(3, 16), torch.tensor([999, 500, 0])
    hoisted_IMW = head.modulations(head.embed_time(timestep_I[:, None]), z_MD)
    for i, timestep in enumerate(timestep_I):
        x_MC = torch.randn(3, head.input.in_features)
        plain = head(x_MC, timestep.expand(3), z_MD)
        torch.testing.assert_close(head.denoise(x_MC, hoisted_IMW[i]), plain, rtol=1e-5, atol=1e-5)
        assert plain.abs().max() > 0


def test_the_head_is_mars_residual_mlp_with_adaptive_norms() -> None:
    """Against the definition written out: each block has shift, scale and gate of its own, all from SiLU(t + c)."""
    head = tiny_magi().head.float()
    x_MC, z_MD, timestep_M = torch.randn(3, head.input.in_features), torch.randn(3, 16), torch.tensor([0, 10, 999])
    c = F.silu(head.timestep(timestep_M) + head.condition(z_MD)) @ head.modulation.weight.T + head.modulation.bias
    h, width = head.input(x_MC), head.input.out_features
    for i, block in enumerate(head.blocks):
        shift, scale, gate = (c[:, (3 * i + k) * width : (3 * i + k + 1) * width] for k in range(3))
        h = h + gate * block.mlp(block.norm(h) * (1 + scale) + shift)
    shift, scale = c[:, -2 * width : -width], c[:, -width:]
    expected = head.output(F.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift)
    torch.testing.assert_close(head(x_MC, timestep_M, z_MD), expected)


def test_the_papers_head_has_twenty_million_parameters() -> None:
    head = DiffusionHead(channels=16, condition_width=1280, width=1024, blocks=3)
    assert sum(parameter.numel() for parameter in head.parameters()) == 20_524_064
