"""Features of many clips are gathered in order, and clips that a network does not take are refused in one line."""

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks.features import check_clips, extract
from magi.evaluation.networks.precision import is_full_precision
from tests.fakes.look_alikes import Projection


def clips(count: int, frames: int = 9) -> Tensor:
    return torch.randint(0, 256, (count, frames, 8, 8, 3), generator=torch.Generator().manual_seed(count)).to(
        torch.uint8
    )


def test_features_do_not_depend_on_batches() -> None:
    video = clips(7)
    whole = extract(Projection(), [video])
    torch.testing.assert_close(extract(Projection(), video.split(3)), whole)
    assert whole.shape == (7, 6) and whole.dtype == torch.float32


def test_networks_run_in_full_precision() -> None:
    class Asking(Projection):
        def features(self, video_BTHWC: Tensor) -> Tensor:
            assert is_full_precision() and not torch.is_grad_enabled()
            return super().features(video_BTHWC)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        extract(Asking(), [clips(2)])
        assert not is_full_precision()


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (clips(2, frames=8), "projection: clips of 8 frames, the network needs at least 9"),
        (clips(2).float(), "projection: expected video_BTHWC of uint8 RGB"),
        (clips(2)[..., :2], "projection: expected video_BTHWC of uint8 RGB"),
    ],
)
def test_what_a_network_does_not_take_is_refused(video: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_clips(video, Projection())
    assert "\n" not in str(caught.value)


def test_no_clips_and_broken_features_are_refused() -> None:
    class Broken(Projection):
        def features(self, video_BTHWC: Tensor) -> Tensor:
            return super().features(video_BTHWC) / 0

    with pytest.raises(ValueError, match="no clips"):
        extract(Projection(), [])
    with pytest.raises(ValueError, match="not finite"):
        extract(Broken(), [clips(2)])
