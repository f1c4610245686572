"""A mixer with a state of constant size goes through the contract alone: training, cached and prepared passes agree."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass
from magi.model.magi import Magi
from magi.model.packed_linear import packed
from magi.model.teacher_forcing import SlotPattern, complete_teacher_forcing
from magi.sampling.generate import generate

FRAMES, VIDEOS = 4, 2


@dataclass
class Sums:
    """Sums of what finished frames wrote, (layers, R, D), and with the frames that do not count yet."""

    finished: Tensor
    pending: Tensor
    capacity: int
    length: int = 0

    @property
    def rows(self) -> int:
        return self.finished.shape[1]

    @property
    def nbytes(self) -> int:
        return 2 * self.finished.nbytes

    def layer(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.finished[index], self.pending[index], self.length

    def advance(self, frames: int) -> None:
        self.length += frames
        self.finished.copy_(self.pending)

    def clear(self) -> None:
        self.length = 0
        self.finished.zero_()


class RunningMean(nn.Module):
    """The mean of values up to a slot: what linear attention is with all keys alike."""

    any_length = False

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)

    def forward(self, x_BSPD: Tensor, attend: SlotPattern, first_query: int = 0) -> Tensor:
        mask_SS = attend.mask_SS().to(x_BSPD)
        weight_SS = mask_SS / mask_SS.sum(dim=1, keepdim=True)
        return torch.einsum("qs,bspd->bqpd", weight_SS, self.value(x_BSPD))[:, first_query:]

    def observe(self, x_BTPD: Tensor, layer: tuple[Tensor, Tensor, int]) -> Tensor:
        mixed_BTPD, total_BPD = self._follow(x_BTPD, layer)
        layer[1].copy_(total_BPD.flatten(0, 1))
        return mixed_BTPD

    def predict(self, x_BTPD: Tensor, layer: tuple[Tensor, Tensor, int]) -> Tensor:
        return self._follow(x_BTPD, layer)[0]

    def _follow(self, x_BTPD: Tensor, layer: tuple[Tensor, Tensor, int]) -> tuple[Tensor, Tensor]:
        sums_BTPD = self.value(x_BTPD).cumsum(dim=1) + layer[0].unflatten(0, (len(x_BTPD), 1, -1))
        count_T = torch.arange(x_BTPD.shape[1]) + layer[2] + 1
        return sums_BTPD / count_T[:, None, None], sums_BTPD[:, -1]

    def new_state(self, layers: int, rows: int, frames: int, like: Tensor) -> Sums:
        size = (layers, rows, len(self.value.bias))
        return Sums(like.new_zeros(size), like.new_zeros(size), frames)

    def prepared(self, dtype: torch.dtype | None, kernels: bool) -> "PreparedMean":
        return PreparedMean(self)


class PreparedMean:
    any_length = False

    def __init__(self, mixer: RunningMean) -> None:
        self.value = packed(mixer.value)

    def predict(self, normed: Tensor, layer: tuple[Tensor, Tensor, int], rows_M: Tensor | None = None) -> Tensor:
        sums = layer[0] if rows_M is None else layer[0][rows_M]
        return (self.value(normed) + sums.view(normed.shape)) / (layer[2] + 1)

    def observe(self, normed: Tensor, layer: tuple[Tensor, Tensor, int]) -> Tensor:
        self.write(normed, layer)
        return self.predict(normed, layer)

    def write(self, normed: Tensor, layer: tuple[Tensor, Tensor, int]) -> None:
        layer[1].copy_(layer[0] + self.value(normed).flatten(0, 1))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Magi:
    monkeypatch.setattr("magi.model.transformer.TemporalAttention", RunningMean)
    config = ModelConfig(
        width=16, blocks=2, heads=2, patch_size=1, frames=FRAMES, head_width=16, head_blocks=1, interval_vocabulary=3,
        dropout=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=FRAMES, channels=2, height=2, width=3), generator).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def told() -> Conditions:
    return Conditions(torch.tensor([1, 2]), torch.ones(VIDEOS, dtype=torch.long))


def test_training_cached_and_prepared_passes_agree(model: Magi) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens_BTNC = torch.randn(VIDEOS, FRAMES, 6, 2, dtype=torch.float64, generator=generator)
    masked_BTN = torch.rand(VIDEOS, FRAMES, 6, generator=generator) < 0.5
    forced, conditions = complete_teacher_forcing(tokens_BTNC, masked_BTN), told()
    is_observation_S = torch.arange(len(forced.time_S)) < forced.observations
    x_BSPD = model._embed(forced.tokens_BSNC, forced.masked_BSN, is_observation_S, forced.time_S, conditions)
    trained_BTND = model._condition(model.transformer(x_BSPD, forced.attend, first_query=forced.observations))

    plain, fast = (model.new_cache(VIDEOS, FRAMES - 1) for _ in range(2))
    frame_pass, picked_Bm = FramePass(model, conditions), torch.arange(6).expand(VIDEOS, -1)
    for frame in range(FRAMES):
        time, given = torch.tensor(frame), (tokens_BTNC[:, frame], masked_BTN[:, frame])
        frame_pass.set_time(time)
        torch.testing.assert_close(model.predict(*given, time, conditions, plain), trained_BTND[:, frame])
        torch.testing.assert_close(frame_pass.predict(*given, picked_Bm, fast)[0], trained_BTND[:, frame])
        if frame + 1 < FRAMES:
            model.observe(tokens_BTNC[:, frame : frame + 1], time[None], conditions, plain)
            frame_pass.observe(tokens_BTNC[:, frame], fast)
            fast.advance(1)
    assert plain.nbytes == model.new_cache(VIDEOS, 1000).nbytes, "as large for a thousand frames as for three"


@pytest.mark.parametrize("longer", ["window", "interpolate"])
def test_videos_longer_than_trained_are_generated(model: Magi, longer: Any) -> None:
    config = SamplingConfig(iterations=2, steps=3, longer=longer, window_keep=2)
    generators = [torch.Generator().manual_seed(seed) for seed in range(VIDEOS)]
    made = list(generate(model, frames=7, conditions=told(), generators=generators, config=config))
    assert len(made) == 7 and all(bool(frame.isfinite().all()) for frame in made)
