"""What the sampler shows the model is what training showed it: cache against training forward, window, positions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass
from magi.model.magi import Magi
from magi.model.teacher_forcing import ForcedSequence, complete_teacher_forcing, masked_teacher_forcing
from magi.model.temporal.kv_cache import KVCache
from magi.sampling import prepared
from magi.sampling.generate import generate
from magi.sampling.history import History, observation_noise, time_positions

FORCING = {"complete": complete_teacher_forcing, "masked": masked_teacher_forcing}
TRAINED = 4
MIXERS = get_args(ModelConfig.model_fields["temporal"].annotation)


def tiny_model(forcing: str = "complete", temporal: str = "softmax") -> Magi:
    """Random weights everywhere, fp64."""
    config = ModelConfig(
        width=16, blocks=2, heads=2, patch_size=1, frames=TRAINED, head_width=16, head_blocks=1,
        classes=3, class_tokens=2, interval_vocabulary=4, teacher_forcing=forcing, dropout=0.0, diffusion_steps=20,
        temporal=temporal, state_width=4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=TRAINED, channels=2, height=2, width=3), generator).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def told(videos: int, noise_level: int = 1) -> Conditions:
    numbers = torch.arange(videos)
    return Conditions(numbers % 4 + 1, torch.full((videos,), noise_level), numbers % 3)


def labels_by_frame(videos: int, frames: int) -> Conditions:
    """A dummy of what varies by frame: another class at every frame, another course for every video."""
    numbers_BT = torch.arange(videos)[:, None] + torch.arange(frames) ** 2 // 2
    return replace(told(videos), label_B=numbers_BT % 3)


def generators(videos: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + k) for k in range(videos)]


def z_of_training(model: Magi, sequence: ForcedSequence, conditions: Conditions, picked_BTN: Tensor) -> Tensor:
    """The head's condition of the picked tokens (M, D) in the training forward."""
    captured: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[2]))
    count = int(picked_BTN.sum())
    noisy_RMC = torch.zeros(1, count, model.token_channels, dtype=torch.float64)
    with torch.no_grad():
        picked_M = picked_BTN.flatten().nonzero().squeeze(1)
        model(sequence, conditions, picked_M, noisy_RMC, torch.zeros(1, count, dtype=torch.long))
    handle.remove()
    return captured[0][:count]  # the rest pads the head's rows


@pytest.mark.parametrize("forcing", ["complete", "masked"])
@pytest.mark.parametrize("frame", range(TRAINED))
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("temporal", MIXERS)
def test_training_forward_at_a_frame_is_the_sampling_forward_with_the_cache(
    forcing: str, frame: int, varying: bool, temporal: str
) -> None:
    model, videos = tiny_model(forcing, temporal), 2
    conditions = labels_by_frame(videos, TRAINED) if varying else told(videos)
    draw = torch.Generator().manual_seed(1)
    tokens_BTNC = torch.randn(videos, TRAINED, model.tokens_per_frame, 2, generator=draw, dtype=torch.float64)
    masked_BTN = torch.rand(videos, TRAINED, model.tokens_per_frame, generator=draw) < 0.6
    if forcing == "masked":  # at inference nothing of an earlier frame is masked: the gap that CTF closes
        masked_BTN[:, :frame] = False
    picked_BTN = torch.zeros_like(masked_BTN)
    picked_BTN[:, frame] = True
    z_MD = z_of_training(model, FORCING[forcing](tokens_BTNC, masked_BTN), conditions, picked_BTN)
    picked_Bm = torch.tensor([[4, 0, 5], [1, 2, 3]])
    expected_BmD = z_MD.view(videos, model.tokens_per_frame, -1).gather(1, picked_Bm[..., None].expand(-1, -1, 16))

    past = History(model, conditions, generators(videos), TRAINED, SamplingConfig())
    with torch.no_grad():
        for earlier in range(frame):  # one by one, as generated frames are
            past.observe(tokens_BTNC[:, earlier : earlier + 1])
        for _ in range(2):  # a masked pass leaves no trace
            z_GBmD = past.predict(tokens_BTNC[:, frame], masked_BTN[:, frame], picked_Bm)
    torch.testing.assert_close(z_GBmD[0], expected_BmD, atol=1e-10, rtol=0)


class Uncached:
    """``History`` without a cache: every prediction runs the training layout over all frames in view."""

    nbytes = 0

    def __init__(
        self,
        model: Magi,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        frames: int,
        config: SamplingConfig,
        *_: object,
    ) -> None:
        self.model, self.conditions, self.frames, self.config = model, conditions, frames, config
        self.halves = len(conditions.interval_B) // len(generators)
        self.view: list[Tensor] = []
        self.finished, self.fresh = 0, True

    def begin(self, conditions: Conditions, generators: list[torch.Generator]) -> None:
        self.conditions, self.view, self.finished, self.fresh = conditions, [], 0, True

    def observe(self, tokens_BTNC: Tensor) -> None:
        window = self.config.longer == "window"
        room = TRAINED - 1 if window else self.frames - 1
        self.view += list(tokens_BTNC.unbind(1))
        self.finished += tokens_BTNC.shape[1]
        if len(self.view) > room:
            self.view = self.view[-(room if self.fresh else self.config.window_keep) :]
        self.fresh = False

    def predict(self, tokens_BNC: Tensor, masked_BN: Tensor, picked_Bm: Tensor) -> Tensor:
        tokens_BTNC = torch.stack([*self.view, tokens_BNC], dim=1)
        masked_BTN = torch.zeros(tokens_BTNC.shape[:3], dtype=torch.bool)
        masked_BTN[:, -1] = masked_BN
        tokens_BTNC, masked_BTN = torch.cat([tokens_BTNC] * self.halves), torch.cat([masked_BTN] * self.halves)
        sequence = FORCING[self.model.config.teacher_forcing](tokens_BTNC, masked_BTN)
        if self.frames > TRAINED and self.config.longer == "interpolate":
            time_S = sequence.time_S.double() * ((TRAINED - 1) / (self.frames - 1))
            sequence = replace(sequence, time_S=time_S)
        picked_BTN = torch.zeros_like(masked_BTN)
        picked_BTN[:, -1] = True
        conditions = self.conditions.between(self.finished - len(self.view), self.finished + 1)
        z_MD = z_of_training(self.model, sequence, conditions, picked_BTN)
        z_GBND = z_MD.view(self.halves, -1, self.model.tokens_per_frame, z_MD.shape[-1])
        return z_GBND.gather(2, picked_Bm[None, :, :, None].expand(self.halves, -1, -1, z_MD.shape[-1]))


@pytest.mark.parametrize("forcing", ["complete", "masked"])
@pytest.mark.parametrize("longer", ["window", "interpolate"])
@pytest.mark.parametrize(("context", "frames", "keep"), [(0, 4, 2), (0, 10, 2), (1, 9, 3), (3, 8, 1), (6, 9, 2)])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("temporal", MIXERS)
def test_cached_equals_uncached_over_a_whole_rollout(
    monkeypatch: pytest.MonkeyPatch,
    forcing: str,
    longer: str,
    context: int,
    frames: int,
    keep: int,
    varying: bool,
    temporal: str,
) -> None:
    if varying and longer == "interpolate" and frames > TRAINED:
        pytest.skip("the reference takes its frames' conditions by their number, which is no fraction")
    model, videos = tiny_model(forcing, temporal), 2
    conditions = labels_by_frame(videos, frames) if varying else told(videos)
    config = SamplingConfig(iterations=2, steps=3, longer=longer, window_keep=keep, guidance=2.0)
    latents = torch.randn(videos, context, 2, 2, 3, generator=generators(1)[0], dtype=torch.float64)

    def rollout() -> Tensor:
        return torch.stack(
            list(
                generate(
                    model,
                    frames=frames,
                    conditions=conditions,
                    generators=generators(videos),
                    config=config,
                    context_BTCHW=latents if context else None,
                )
            )
        )

    cached = rollout()
    monkeypatch.setattr(prepared, "History", Uncached)
    assert len(cached) == frames - context
    torch.testing.assert_close(cached, rollout(), atol=1e-5, rtol=1e-5)


def test_a_window_costs_the_same_for_ever_and_never_leaves_the_trained_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, positions, sizes = tiny_model(), [], []
    plain_place, plain_predict, plain_observe = FramePass.set_time, FramePass.predict, FramePass.observe
    plain_several = Magi.observe

    def place(self: FramePass, time: Tensor) -> None:
        self.placed = int(time)  # type: ignore[attr-defined]
        plain_place(self, time)

    def predict(self: FramePass, *rest: Any) -> Tensor:
        positions.append(self.placed)  # type: ignore[attr-defined]
        return plain_predict(self, *rest)

    def observe(self: FramePass, tokens_BNC: Tensor, cache: KVCache) -> None:
        sizes.append([self.placed])  # type: ignore[attr-defined]
        plain_observe(self, tokens_BNC, cache)

    def several(self: Magi, tokens_BTNC: Tensor, time_T: Tensor, *rest: Any) -> None:
        sizes.append(time_T.tolist())
        plain_several(self, tokens_BTNC, time_T, *rest)

    for name, spy in (("set_time", place), ("predict", predict), ("observe", observe)):
        monkeypatch.setattr(FramePass, name, spy)
    monkeypatch.setattr(Magi, "observe", several)
    config = SamplingConfig(iterations=1, steps=2, longer="window", window_keep=2)
    list(generate(model, frames=9, conditions=told(1), generators=generators(1), config=config))
    assert positions == [0, 1, 2, 3, 2, 3, 2, 3, 2]
    assert sizes == [[0], [1], [2], [0, 1], [2], [0, 1], [2], [0, 1]]


@pytest.mark.parametrize("temporal", MIXERS)
def test_a_past_that_begins_anew_is_a_new_one_in_the_same_place(temporal: str) -> None:
    model, config = tiny_model(temporal=temporal), SamplingConfig(longer="window", window_keep=2)
    tokens_BTNC = torch.randn(2, 9, model.tokens_per_frame, 2, dtype=torch.float64, generator=generators(1)[0])
    masked_BN, picked_Bm = torch.ones(2, 6, dtype=torch.bool), torch.tensor([[4, 0, 5], [1, 2, 3]])

    def read(past: History, first: int, last: int) -> list[Tensor]:
        seen = []
        for frame in range(first, last):
            past.observe(tokens_BTNC[:, frame : frame + 1])
            seen.append(past.predict(tokens_BTNC[:, 0], masked_BN, picked_Bm))
        return seen

    def places(past: History) -> list[int]:
        own = [*vars(past.frame_pass).values(), *vars(past.cache).values()]
        return [value.data_ptr() for value in own if isinstance(value, Tensor)]

    with torch.inference_mode():
        used = History(model, told(2, noise_level=4), generators(2), 10, config)
        before = places(used)
        read(used, 0, 5)
        other = replace(told(2), interval_B=torch.tensor([3, 1]), noise_level_B=torch.tensor([1, 2]))
        used.begin(other, generators(2))
        new = History(model, other, generators(2), 10, config)
        start = [past.predict(tokens_BTNC[:, 0], masked_BN, picked_Bm) for past in (used, new)]
        assert torch.equal(*start)
        # From a context longer than the window on, of which only the newest are seen.
        for past in (used, new):
            past.observe(tokens_BTNC[:, :5])
        assert all(map(torch.equal, read(used, 5, 9), read(new, 5, 9)))
    assert places(used) == before and len(before) >= 6
    with pytest.raises(AssertionError):
        used.begin(told(3), generators(3))


def test_positions_up_to_the_trained_length_are_whole_and_then_share_its_range() -> None:
    interpolate, window = SamplingConfig(longer="interpolate"), SamplingConfig(longer="window")
    for config in (interpolate, window):
        assert time_positions(3, 4, config).tolist() == [0, 1, 2]
        assert time_positions(4, 4, config).dtype == torch.long
    torch.testing.assert_close(time_positions(7, 4, interpolate), torch.arange(7) / 2)
    assert time_positions(100, 16, interpolate)[-1] == 15
    assert time_positions(1, 1, interpolate).tolist() == [0]
    assert time_positions(5, 1, interpolate).tolist() == [0.0] * 5
    assert time_positions(100, 16, window).tolist() == list(range(16))


def test_noise_level_one_adds_nothing_and_others_the_middle_of_their_bucket() -> None:
    model = tiny_model()
    amplitudes = [observation_noise(model, level) for level in range(1, 6)]
    assert amplitudes == pytest.approx([0, 0.21, 0.35, 0.49, 0.63])


def test_noise_of_an_observed_frame_is_drawn_once_and_only_for_its_video(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shown = tiny_model(), []
    plain_one, plain_several = FramePass.observe, Magi.observe

    def one(self: FramePass, tokens_BNC: Tensor, cache: KVCache) -> None:
        shown.append(tokens_BNC[:, None].clone())
        plain_one(self, tokens_BNC, cache)

    def several(self: Magi, tokens_BTNC: Tensor, *rest: Any) -> None:
        shown.append(tokens_BTNC.clone())
        plain_several(self, tokens_BTNC, *rest)

    monkeypatch.setattr(FramePass, "observe", one)
    monkeypatch.setattr(Magi, "observe", several)
    conditions = replace(told(2), noise_level_B=torch.tensor([1, 4]))
    past = History(model, conditions, generators(2), 100, SamplingConfig(longer="window", window_keep=3))
    clean_BTNC = torch.randn(2, 4, model.tokens_per_frame, 2, dtype=torch.float64, generator=generators(1)[0])
    with torch.no_grad():
        for frame in range(4):
            past.observe(clean_BTNC[:, frame : frame + 1])
    assert [tokens.shape[1] for tokens in shown] == [1, 1, 1, 3]
    assert torch.equal(shown[3][0], clean_BTNC[0, 1:])
    assert torch.equal(shown[3][:, :2], torch.cat(shown[1:3], dim=1)), "observed anew with other noise"
    added = torch.cat(shown[:3], dim=1)[1] - clean_BTNC[1, :3]
    assert added.abs().min() > 0
    assert 0.3 < added.std() < 0.7


@pytest.mark.parametrize(("longer", "frames"), [("window", 11), ("interpolate", 4), ("interpolate", 9)])
@pytest.mark.parametrize("changed", [1, 3])
def test_a_condition_of_a_frame_changes_that_frame_and_none_before(longer: str, frames: int, changed: int) -> None:
    """In cached sampling, with a context, across slides of the window, for each video by itself."""
    model, config = tiny_model(), SamplingConfig(iterations=2, steps=3, longer=longer, window_keep=2)
    context = torch.randn(2, 1, 2, 2, 3, generator=generators(1)[0], dtype=torch.float64)
    label_BT = labels_by_frame(2, frames).label_B
    assert label_BT is not None

    def video(label_BT: Tensor) -> Tensor:
        conditions = replace(told(2), label_B=label_BT)
        made = generate(
            model, frames=frames, conditions=conditions, generators=generators(2), config=config, context_BTCHW=context
        )
        return torch.stack(list(made), dim=1)  # from frame 1 on

    other_BT = label_BT.clone()
    other_BT[0, changed] = (label_BT[0, changed] + 1) % 3
    one, other = video(label_BT), video(other_BT)
    assert torch.equal(one[1], other[1]), "the other video has its own conditions"
    assert torch.equal(one[0, : changed - 1], other[0, : changed - 1])
    for later in range(changed - 1, min(frames - 1, changed + 1)):
        assert float((one[0, later] - other[0, later]).abs().max()) > 1e-3, later


def test_constant_conditions_given_by_frame_are_the_constant_ones() -> None:
    model, config = tiny_model(), SamplingConfig(iterations=2, steps=3, longer="window", window_keep=2, guidance=2.0)
    assert (label_B := told(2).label_B) is not None

    def video(label_B: Tensor) -> Tensor:
        conditions = replace(told(2), label_B=label_B)
        return torch.stack(
            list(generate(model, frames=8, conditions=conditions, generators=generators(2), config=config))
        )

    assert torch.equal(video(label_B), video(label_B[:, None].expand(2, 8)))


def test_conditions_of_another_length_are_refused() -> None:
    arguments = {"generators": generators(2), "config": SamplingConfig(iterations=2, steps=3)}
    with pytest.raises(ValueError, match="conditions of 3 latent frames for 4"):
        generate(tiny_model(), frames=4, conditions=labels_by_frame(2, 3), **arguments)  # type: ignore[arg-type]
    noisy = replace(told(2), noise_level_B=torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="noise level of a video is one number"):
        generate(tiny_model(), frames=4, conditions=noisy, **arguments)  # type: ignore[arg-type]
