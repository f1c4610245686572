"""Both mixers through their contract alone: training, cached and prepared passes agree; the state is what it says."""

from typing import Any, get_args

import pytest
import torch

from magi.config import LatentShape, ModelConfig, SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.frame_pass import FramePass
from magi.model.magi import Magi
from magi.model.teacher_forcing import complete_teacher_forcing
from magi.sampling.generate import generate
from magi.sampling.history import History

FRAMES, VIDEOS = 4, 2
MIXERS = get_args(ModelConfig.model_fields["temporal"].annotation)


def tiny_model(temporal: str) -> Magi:
    config = ModelConfig(
        width=16, blocks=2, heads=2, patch_size=1, frames=FRAMES, head_width=16, head_blocks=1, interval_vocabulary=3,
        dropout=0.0, temporal=temporal, state_width=4,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, LatentShape(frames=FRAMES, channels=2, height=2, width=3), generator).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def told(videos: int = VIDEOS) -> Conditions:
    return Conditions(torch.arange(videos) + 1, torch.ones(videos, dtype=torch.long))


@pytest.mark.parametrize("temporal", MIXERS)
def test_training_cached_and_prepared_passes_agree(temporal: str) -> None:
    model, generator = tiny_model(temporal), torch.Generator().manual_seed(1)
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
    assert plain.length == fast.length == plain.capacity == FRAMES - 1
    assert plain.rows == VIDEOS * model.positions and plain.nbytes == model.new_cache(VIDEOS, FRAMES - 1).nbytes


@pytest.mark.parametrize("temporal", MIXERS)
@pytest.mark.parametrize("longer", ["window", "interpolate"])
def test_videos_longer_than_trained_are_generated(temporal: str, longer: Any) -> None:
    config = SamplingConfig(iterations=2, steps=3, longer=longer, window_keep=2)
    generators = [torch.Generator().manual_seed(seed) for seed in range(VIDEOS)]
    made = list(generate(tiny_model(temporal), frames=7, conditions=told(), generators=generators, config=config))
    assert len(made) == 7 and all(bool(frame.isfinite().all()) for frame in made)


def test_a_stream_of_gated_linear_attention_keeps_all_frames_in_a_state_of_constant_size() -> None:
    """200 frames of a model trained on 4: nothing is shown again, nothing grows, the first frame still counts."""
    model, config = tiny_model("gated_linear"), SamplingConfig(longer="interpolate")
    generator = torch.Generator().manual_seed(1)
    tokens_BTNC = torch.randn(1, 200, 6, 2, dtype=torch.float64, generator=generator)
    other_BTNC = tokens_BTNC.clone()
    other_BTNC[:, 0] += 1
    histories = [History(model, told(1), [generator], 1_000, config) for _ in range(2)]
    place, size = histories[0].cache.memory.data_ptr(), histories[0].nbytes  # type: ignore[attr-defined]
    masked_BN, picked_Bm, changes = torch.ones(1, 6, dtype=torch.bool), torch.arange(6)[None], []
    for number in range(200):
        seen = []
        for history, given_BTNC in zip(histories, (tokens_BTNC, other_BTNC), strict=True):
            history.observe(given_BTNC[:, number : number + 1])
            seen.append(history.predict(tokens_BTNC[:, 0], masked_BN, picked_Bm))
        changes.append(float((seen[0] - seen[1]).abs().max()))
    cache = histories[0].cache
    assert (cache.length, histories[0].nbytes, cache.memory.data_ptr()) == (200, size, place)  # type: ignore[attr-defined]
    assert size == model.new_cache(1, 3).nbytes < tiny_model("softmax").new_cache(1, 1_000).nbytes / 50
    assert changes[0] > changes[20] > changes[40] > 0, "the first frame fades"
