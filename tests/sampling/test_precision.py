"""What precision costs: a whole continuation by the shipped model in bf16 against the same one in float32."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from magi.data.moving_digits import digit_video
from magi.sampling.execution import Execution
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import PreparedSampler

CONTEXT, FRAMES, DIGITS = 4, 16, 2
LIMIT = 0.01
"""Root mean square over the pixels of a frame, of their range. Numbers in bf16 are off by up to 1/256 of their
size; measured are 0.0007 in the first of 12 frames and 0.0043 in the last, which depends on them all.
"""


def continuation(pipe: MagiPipeline, first_seed: int = 0, sampling: Mapping[str, Any] | None = None) -> Tensor:
    """Generated frames of some digits, (B, T, H, W, C) in 0..1."""
    clips = [digit_video(7, number, frames=CONTEXT) for number in range(DIGITS)]
    context_BTHWC = torch.stack([torch.from_numpy(clip.video_THWC) for clip in clips])
    seeds = range(first_seed, first_seed + DIGITS)
    result = pipe(frames=FRAMES, context=context_BTHWC, seeds=seeds, sampling=sampling)
    return result.video_BTHWC[:, CONTEXT:] / 255


def difference(one: Tensor, other: Tensor) -> list[float]:
    """Root mean square of each frame."""
    return (one - other).square().mean((0, 2, 3, 4)).sqrt().tolist()


def test_a_continuation_in_bf16_is_that_in_float32_up_to_rounding() -> None:
    exact = continuation(MagiPipeline.from_pretrained("demo", dtype="float32"))
    rounded = difference(continuation(MagiPipeline.from_pretrained("demo", dtype="bfloat16")), exact)
    another = difference(continuation(MagiPipeline.from_pretrained("demo", dtype="float32"), first_seed=50), exact)
    assert min(rounded) > 1e-4, "computed in float32"
    assert max(rounded) < LIMIT
    assert max(rounded) < max(another) / 3, "not another video"


@pytest.mark.parametrize(("dtype", "products"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_is_the_precision_of_the_sampler(
    dtype: Literal["float32", "bfloat16"], products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, seen = MagiPipeline.from_pretrained("demo", dtype=dtype), []
    begin = PreparedSampler.begin
    monkeypatch.setattr(
        PreparedSampler, "begin", lambda self, *given: seen.append(self.execution) or begin(self, *given)
    )
    assert pipe.model.mask_token.dtype == torch.float32, "weights stay as they were loaded"
    pipe(frames=1)
    pipe(frames=1, sampling={"precision": "fp32"})
    exact = Execution(torch.float32, torch.float32, torch.float32)
    assert seen == [Execution(torch.float32, products, products), exact]


def test_another_dtype_is_refused() -> None:
    wrong: Any = "float16"
    with pytest.raises(ValueError, match="dtype: expected auto, float32 or bfloat16, got 'float16'"):
        MagiPipeline.from_pretrained("demo", dtype=wrong)
