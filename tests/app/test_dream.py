"""Dreams in legs are the frames of one long stream, whoever shares the batch and whoever drops out of it."""

from typing import Any

import numpy as np
import pytest
import torch

from magi.app.dream import NO_ACTION, Dream, StartClip, keep_frames
from magi.config import Config, LatentShape, SamplingConfig
from magi.data.worlds.worlds import find_world
from magi.errors import NumericsError
from magi.model.magi import Magi
from magi.sampling.pipeline import MagiPipeline
from magi.vae.pixel import PixelVae

TRAINED, KEEP, ACTIONS = 5, 3, 2
ROUNDING = 1.0  # of 255, on average: an untrained model magnifies the rounding of another batch size


class SoftVae(PixelVae):
    """An untrained model's latents are far out of range: folded back, so that a difference is seen, not clamped."""

    def decode(self, latents_BTCHW: torch.Tensor) -> torch.Tensor:
        return super().decode(latents_BTCHW.sin())


def pipeline(actions: int = ACTIONS, classes: int = 0, text: bool = False, **sampling: Any) -> MagiPipeline:
    config = Config.model_validate(
        {
            "data": {"frames": TRAINED, "height": 16, "width": 16, "interval_max": 1},
            "vae": {"name": "pixel", "weights": ""},
            "model": {
                "width": 16, "blocks": 2, "heads": 2, "patch_size": 1, "frames": TRAINED, "head_width": 16,
                "head_blocks": 1, "actions": actions, "classes": classes, "class_tokens": 1, "interval_vocabulary": 2,
                "dropout": 0.0, "diffusion_steps": 50, "text_encoder": "bytes" if text else "", "text_length": 8,
                "text_tokens": 2,
            },
            "sampling": {"iterations": 2, "steps": 3, "longer": "window", "window_keep": KEEP, "temperature": 0.5,
            "precision": "fp32"} | sampling,
        }
    )  # fmt: skip
    generator, vae = torch.Generator().manual_seed(0), SoftVae(8)
    shape = LatentShape(frames=TRAINED, channels=vae.channels, height=2, width=2)
    model = Magi(config.model, shape, generator)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return MagiPipeline(model, vae, config)


def starts(count: int = 3, frames: int = KEEP) -> list[StartClip]:
    videos = np.random.default_rng(0).integers(0, 256, (count, frames, 16, 16, 3), np.uint8)
    return [StartClip(f"{n}", video, (NO_ACTION, *[n % ACTIONS] * (frames - 1))) for n, video in enumerate(videos)]


def pressed(player: int, number: int) -> int:
    return (player + number // 3) % (ACTIONS + 1) - 1


def far_apart(first: Any, second: Any) -> float:
    return float(np.abs(np.stack(first).astype(int) - np.stack(second)).mean())


def played(dream: Dream, players: list[int], legs: int, absent: dict[int, set[int]] | None = None) -> list[Any]:
    """Frames that each player got; ``absent`` are the numbers of frames of a leg that a player does not want."""
    states, got = [dream.begin(player, player) for player in players], [[] for _ in players]  # type: ignore[var-annotated]
    for _ in range(legs):
        asked: list[int | None] = []
        gone: set[int] = set()

        def ask(asked: list[int | None] = asked, gone: set[int] = gone) -> list[int | None]:
            for slot, player in enumerate(players):
                if len(got[0]) % (TRAINED - KEEP) in (absent or {}).get(player, ()):
                    gone.add(slot)
            asked[:] = [None if s in gone else pressed(p, KEEP + len(got[s])) for s, p in enumerate(players)]
            return asked

        for pictures_BHWC in dream.leg(states, ask):
            for slot, action in enumerate(asked):
                if action is not None:
                    got[slot].append(pictures_BHWC[slot])
    return got


@pytest.mark.parametrize("sampling", [{}, {"guidance": 2.0}])
@pytest.mark.parametrize("players", [[0], [0, 1, 2]])
def test_legs_are_one_long_stream(sampling: dict[str, Any], players: list[int]) -> None:
    pipe, clips = pipeline(**sampling), starts()
    frames = KEEP + 4 * (TRAINED - KEEP)
    for player, got in enumerate(played(Dream(pipe, starts=clips), players, 4)):
        track = [*clips[player].actions, *[pressed(player, number) for number in range(KEEP, frames)]]
        context = clips[player].video_THWC
        whole = pipe(frames=frames, context=context, actions=track, seeds=[player]).video_BTHWC[0, KEEP:].numpy()
        assert far_apart(got, whole) <= (0 if len(players) == 1 else ROUNDING)


def test_who_drops_out_goes_on_where_it_was_and_changes_nobody() -> None:
    pipe, clips = pipeline(), starts()
    alone = [played(Dream(pipe, starts=clips), [player], 3)[0] for player in (0, 1)]
    both = played(Dream(pipe, starts=clips), [0, 1], 6, absent={1: {1}})
    assert len(both[0]) == 12 and len(both[1]) == 6
    assert far_apart(both[0][:6], alone[0]) <= ROUNDING and far_apart(both[1][:1], alone[1][:1]) <= ROUNDING
    dream = Dream(pipe, starts=clips)
    states = [dream.begin(0, 0), dream.begin(1, 1)]
    before = states[1].latents_TCHW, states[1].actions
    assert len(list(dream.leg(states, lambda: [0, None]))) == TRAINED - KEEP
    assert states[1].latents_TCHW is before[0] and states[1].actions == before[1]
    assert states[0].actions[-2:] == (0, 0)


def test_a_class_is_what_the_dream_goes_on_in() -> None:
    dream = Dream(pipeline(actions=0, classes=3))
    assert [start.name for start in dream.starts] == ["0", "1", "2"] and dream.classes == ("0", "1", "2")
    states = [dream.begin(0, 7), dream.begin(0, 7)]
    states[1].label = 2
    first, second = next(dream.leg(states, lambda: [NO_ACTION, NO_ACTION]))
    assert (first != second).any()


@pytest.mark.parametrize("actions", [0, ACTIONS])
def test_prompts_of_legs_are_those_of_one_long_stream(actions: int) -> None:
    """Changed in the middle of a leg, too; one that is too long changes nothing but what is said."""
    pipe = pipeline(actions=actions, text=True, guidance=2.0)
    clip = StartClip("0", starts(1)[0].video_THWC, (NO_ACTION,) * KEEP, prompt="left")
    dream, frames = Dream(pipe, starts=[clip]), KEEP + 3 * (TRAINED - KEEP)
    state, got, asked = dream.begin(0, 7), [], [*["left"] * KEEP, "left", "right", "right", "much too long", "", ""]

    def ask() -> list[int | None]:
        state.prompt = asked[KEEP + len(got)]
        return [NO_ACTION]

    while len(got) < frames - KEEP:
        for pictures_BHWC in dream.leg([state], ask):
            got.append(pictures_BHWC[0])
            if len(got) == 4:
                assert state.prompts[-1] == "right" and "8, make it shorter" in state.refusal
    assert state.prompts == ("right", "", "") and not state.refusal

    def prompt(frame: int) -> str:
        return asked[frame].replace("much too long", "right")

    whole = pipe(frames=frames, context=clip.video_THWC, prompt=prompt, seeds=[7]).video_BTHWC[0, KEEP:].numpy()
    assert far_apart(got, whole) == 0
    deaf = pipe(frames=frames, context=clip.video_THWC, prompt="left", seeds=[7]).video_BTHWC[0, KEEP:].numpy()
    assert far_apart(got[:1], deaf[:1]) == 0 < far_apart(got[1:2], deaf[1:2])
    with pytest.raises(ValueError, match="make it shorter"):
        Dream(pipe, starts=[StartClip("0", clip.video_THWC, clip.actions, prompt="much too long")])


def test_a_model_that_knows_nothing_else_starts_from_what_it_makes() -> None:
    dream = Dream(pipeline(actions=0, longer="interpolate"))
    assert (dream.keep, dream.settings.longer, dream.actions) == (TRAINED // 2, "window", ())
    dream.warm_up(2)


def test_what_cannot_be_played_is_one_line() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=r"--world platform has 6 actions and 64x64 pixels, this model 2 and 16x16"):
        Dream(pipe, find_world("platform"))
    with pytest.raises(ValueError, match="start '0': expected 3 frames, got 2"):
        Dream(pipe, starts=starts(frames=2))
    single = pipe.config.model.model_copy(update={"frames": 1})
    with pytest.raises(ValueError, match="single frames"):
        Dream(MagiPipeline(pipe.model, pipe.vae, pipe.config.model_copy(update={"model": single})))

    class Long(SoftVae):
        temporal_stride = 4

    with pytest.raises(ValueError, match="4 frames at a time"):
        Dream(MagiPipeline(pipe.model, Long(8), pipe.config))


def test_memory_that_ends_says_how_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    dream = Dream(pipeline(), starts=starts())
    leg = dream.leg

    def full(states: Any, ask: Any) -> Any:
        if len(states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return leg(states, ask)

    monkeypatch.setattr(dream, "leg", full)
    with pytest.raises(ValueError, match=r"--players 4: more than the memory of the GPU holds; 2 fit"):
        dream.warm_up(4)


def test_a_frame_that_is_not_finite_is_no_frame() -> None:
    dream = Dream(pipeline(), starts=starts())
    state = dream.begin(0, 0)
    state.latents_TCHW = state.latents_TCHW * torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        next(dream.leg([state], lambda: [0]))


def test_what_is_kept() -> None:
    window = SamplingConfig(longer="window", window_keep=8)
    assert [keep_frames(window, trained) for trained in (16, 9, 8, 4)] == [8, 8, 4, 2]
    assert keep_frames(SamplingConfig(longer="interpolate"), 16) == 8
