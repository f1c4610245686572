"""A pass over one frame is ``Magi.predict`` and ``Magi.observe``, pruned and laid out anew but not changed."""

import pytest
import torch

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass, cached_attention
from magi.model.magi import Magi
from magi.model.packed_linear import can_pack

VIDEOS, KNOWN = 2, 3


def tiny_model(forcing: str, classes: int = 3) -> Magi:
    config = ModelConfig(
        width=16, blocks=2, heads=2, patch_size=1, frames=5, head_width=16, head_blocks=1, classes=classes,
        class_tokens=2, interval_vocabulary=3, teacher_forcing=forcing, dropout=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=5, channels=2, height=2, width=3), generator).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def told(model: Magi) -> Conditions:
    numbers = torch.arange(VIDEOS)
    conditions = Conditions(numbers + 1, numbers * 2 + 1, numbers)
    return conditions.concatenate(conditions.without_label(model.config.classes))


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("time", [3, 2.5])
@pytest.mark.parametrize("forcing", ["complete", "masked"])
@pytest.mark.parametrize("packed", [False, True])
def test_passes_are_those_of_the_model(
    forcing: str, time: float, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, and in float32 with weights packed for the processor, as large layers are."""
    model, tolerance = tiny_model(forcing), 1e-10
    if packed:
        monkeypatch.setattr("magi.model.packed_linear.LEAST_WEIGHTS", 1)
        model, tolerance = model.float(), 1e-5
    dtype = model.mask_token.dtype
    conditions, N = told(model), model.tokens_per_frame
    plain, fast = (model.new_cache(2 * VIDEOS, KNOWN) for _ in range(2))
    frame_pass = FramePass(model, conditions, halves=2)
    assert (frame_pass.temporal[0].mlp_in.packed is not None) == (packed and can_pack(model.mask_token))
    tokens_BTNC = normal(VIDEOS, KNOWN + 1, N, 2).to(dtype)
    for frame in range(KNOWN):
        model.observe(tokens_BTNC[:, frame : frame + 1].repeat(2, 1, 1, 1), torch.tensor([frame]), conditions, plain)
        frame_pass.place(torch.tensor(frame))
        frame_pass.observe(tokens_BTNC[:, frame], fast)
        fast.advance(1)
    torch.testing.assert_close(fast.stored[:, :, :KNOWN], plain.stored[:, :, :KNOWN], atol=tolerance, rtol=0)

    masked_BN = torch.rand(VIDEOS, N, generator=torch.Generator().manual_seed(3)) < 0.5
    picked_Bm = torch.tensor([[5, 0, 2], [1, 1, 4]])
    tokens_BNC = tokens_BTNC[:, KNOWN]
    position = torch.tensor(time)
    z = model.predict(tokens_BNC.repeat(2, 1, 1), masked_BN.repeat(2, 1), position, conditions, plain)
    expected = z.unflatten(0, (2, VIDEOS)).gather(2, picked_Bm[None, :, :, None].expand(2, -1, -1, 16))
    frame_pass.place(position)
    before = fast.stored.clone()
    got = frame_pass.predict(tokens_BNC, masked_BN, picked_Bm, fast)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
    assert torch.equal(fast.stored, before), "a masked pass leaves no trace"


@pytest.mark.parametrize("length", [0, 1, 7])
def test_attention_to_the_cache_is_attention_to_all_slots(length: int) -> None:
    qkv, stored = normal(5, 3, 2, 4), normal(5, length, 2, 2, 4, seed=2)
    keys = torch.cat([stored[:, :, 0], qkv[:, None, 1]], dim=1).transpose(1, 2)
    values = torch.cat([stored[:, :, 1], qkv[:, None, 2]], dim=1).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values).squeeze(2)
    torch.testing.assert_close(cached_attention(qkv, stored), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [0, 1, 15, 40])
def test_the_kernel_reads_the_cache_as_the_plain_path_does(length: int) -> None:
    from magi.model.cache_kernels import read_cache

    qkv = normal(70, 3, 4, 80).bfloat16().to("cuda")
    stored = normal(70, 41, 2, 4, 80, seed=2).bfloat16().to("cuda")
    count = torch.tensor([length], device="cuda")
    expected = cached_attention(qkv, stored[:, :length])
    torch.testing.assert_close(read_cache(qkv, stored, count), expected, atol=2e-2, rtol=2e-2)
    rows = torch.tensor([3, 3, 60], device="cuda")
    some = read_cache(qkv[:3].contiguous(), stored, count, rows)
    torch.testing.assert_close(some, cached_attention(qkv[:3], stored[rows, :length]), atol=2e-2, rtol=2e-2)
