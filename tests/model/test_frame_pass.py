"""A pass over one frame is ``Magi.predict`` and ``Magi.observe``, pruned and laid out anew but not changed."""

import pytest
import torch

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass, add_norm
from magi.model.magi import Magi
from magi.model.packed_linear import can_pack
from magi.model.temporal.softmax import cached_attention

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
    return Conditions.cat([conditions, conditions.null(model.config)])


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
    assert (frame_pass.mlps[1][0].packed is not None) == (packed and can_pack(model.mask_token))
    tokens_BTNC = normal(VIDEOS, KNOWN + 1, N, 2).to(dtype)
    for frame in range(KNOWN):
        model.observe(tokens_BTNC[:, frame : frame + 1].repeat(2, 1, 1, 1), torch.tensor([frame]), conditions, plain)
        frame_pass.set_time(torch.tensor(frame))
        frame_pass.observe(tokens_BTNC[:, frame], fast)
        fast.advance(1)
    torch.testing.assert_close(fast.stored[:, :, :KNOWN], plain.stored[:, :, :KNOWN], atol=tolerance, rtol=0)

    masked_BN = torch.rand(VIDEOS, N, generator=torch.Generator().manual_seed(3)) < 0.5
    picked_Bm = torch.tensor([[5, 0, 2], [1, 1, 4]])
    tokens_BNC = tokens_BTNC[:, KNOWN]
    position = torch.tensor(time)
    z = model.predict(tokens_BNC.repeat(2, 1, 1), masked_BN.repeat(2, 1), position, conditions, plain)
    expected = z.unflatten(0, (2, VIDEOS)).gather(2, picked_Bm[None, :, :, None].expand(2, -1, -1, 16))
    frame_pass.set_time(position)
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


@pytest.mark.parametrize("forcing", ["complete", "masked"])
def test_passes_by_kernels_are_the_plain_ones(forcing: str) -> None:
    """What kernels compute of a video's first frames, in float32, and that all of them are in use."""
    pytest.importorskip("triton", reason="pip install -e '.[kernels]'")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = tiny_model(forcing).float()
    conditions = told(model)
    tokens_BTNC = normal(VIDEOS, KNOWN + 1, model.tokens_per_frame, 2).float()
    masked_BN = torch.rand(VIDEOS, 6, generator=torch.Generator().manual_seed(3)) < 0.5
    picked_Bm = torch.tensor([[5, 0, 2], [1, 1, 4]])
    plain = FramePass(model, conditions, halves=2)
    expected = frames_and_prediction(plain, model, tokens_BTNC, masked_BN, picked_Bm)
    model = model.to(device)
    conditions = conditions.to(torch.device(device))
    fast = FramePass(model, conditions, halves=2, kernels=True)
    inputs = (values.to(device) for values in (tokens_BTNC, masked_BN, picked_Bm))
    got = frames_and_prediction(fast, model, *inputs)
    for ours, plain_one in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), plain_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("forcing", ["complete", "masked"])
def test_products_in_bf16_are_close_and_what_adds_up_stays(forcing: str) -> None:
    """Hidden states and cache are float32 still, so rounding does not add up over blocks and frames."""
    model = tiny_model(forcing).float()
    tokens_BTNC = normal(VIDEOS, KNOWN + 1, model.tokens_per_frame, 2).float()
    masked_BN = torch.rand(VIDEOS, 6, generator=torch.Generator().manual_seed(3)) < 0.5
    inputs = (model, tokens_BTNC, masked_BN, torch.tensor([[5, 0, 2], [1, 1, 4]]))
    exact, rounded = (
        frames_and_prediction(FramePass(model, told(model), halves=2, dtype=dtype), *inputs)
        for dtype in (None, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 1e-4 < (other - one).norm() / one.norm() < 2e-2
    assert torch.equal(rounded[0].bfloat16().float(), rounded[0]), "keys and values come from a product"
    x, change = normal(3, 16).float(), normal(3, 16, seed=2).bfloat16()
    total, normed = add_norm(x, change, (torch.ones(16), torch.zeros(16)))
    assert torch.equal(total, x + change.float()) and normed.dtype == torch.float32


def frames_and_prediction(
    frame_pass: FramePass, model: Magi, tokens_BTNC: torch.Tensor, masked_BN: torch.Tensor, picked_Bm: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cache of all frames but the last, and what is predicted of the last."""
    cache = model.new_cache(2 * VIDEOS, KNOWN)
    for frame in range(KNOWN):
        frame_pass.set_time(torch.tensor(frame, device=tokens_BTNC.device))
        frame_pass.observe(tokens_BTNC[:, frame], cache)
        cache.advance(1)
    frame_pass.set_time(torch.tensor(KNOWN, device=tokens_BTNC.device))
    z_GBmD = frame_pass.predict(tokens_BTNC[:, KNOWN], masked_BN, picked_Bm, cache)
    return cache.stored[:, :, :KNOWN].clone(), z_GBmD
