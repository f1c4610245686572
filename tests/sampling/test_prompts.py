"""Prompts at sampling: obeyed by every frame or from a frame on, by their own video alone, and refused in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import Config, DataConfig, LatentShape, ModelConfig, SamplingConfig, VaeConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.text import TextTokens, no_text
from magi.sampling.generate import generate
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import PreparedSampler, SamplerCache
from magi.text.bytes import byte_text
from magi.vae.contract import latent_shape
from tests.sampling.test_pipeline import SoftVae, some_video, tiny_pipeline

FRAMES, CONTEXT, LENGTH = 9, 2, 20
FAST = SamplingConfig(iterations=2, steps=3)
WINDOW = FAST.changed(longer="window", window_keep=2)
ANEW = WINDOW.changed(prompt_change="observe_anew")
MODEL = ModelConfig(
    width=16, blocks=2, heads=2, patch_size=1, frames=4, head_width=16, head_blocks=1, text_encoder="bytes",
    text_tokens=2, text_length=LENGTH, interval_vocabulary=2, dropout=0.0, diffusion_steps=50,
)  # fmt: skip


def tiny_model(config: ModelConfig = MODEL, latent: LatentShape | None = None) -> Magi:
    generator = torch.Generator().manual_seed(0)
    model = Magi(config, latent or LatentShape(frames=4, channels=2, height=2, width=3), generator)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def rollout(texts: list[str], config: SamplingConfig = WINDOW, **changes: Any) -> Tensor:
    """Latents of a video for each text, (B, T, C, H, W)."""
    videos = len(texts)
    ones_B = torch.ones(videos, dtype=torch.long)
    latents = torch.randn(8, CONTEXT, 2, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    arguments: dict[str, Any] = {
        "frames": FRAMES,
        "conditions": Conditions(ones_B, ones_B, text_BLE=byte_text(texts, LENGTH)),
        "generators": [torch.Generator().manual_seed(seed) for seed in range(videos)],
        "config": config,
        "context_BTCHW": latents[:videos],
    }
    return torch.stack(list(generate(tiny_model().double(), **arguments | changes)), dim=1)


def live(texts_of: Callable[[int], list[str]], config: SamplingConfig = WINDOW, **changes: Any) -> Tensor:
    """The same with texts that are asked for frame by frame."""
    ones_B = torch.ones(2, dtype=torch.long)
    texts: dict[tuple[str, ...], Tensor] = {}

    def ask(number: int) -> Tensor:
        key = tuple(texts_of(number))
        return texts.setdefault(key, byte_text(key, LENGTH))

    nothing = Conditions(ones_B, ones_B, text_BLE=no_text(MODEL, 2))
    return rollout(["", ""], config, **{"conditions": nothing, "next_text": ask} | changes)


@pytest.mark.parametrize("config", [FAST, WINDOW, WINDOW.changed(guidance=2.0)])
@pytest.mark.parametrize("context", [True, False])
def test_a_text_asked_for_frame_by_frame_is_the_constant_one(config: SamplingConfig, context: bool) -> None:
    changes: dict[str, Any] = {} if context else {"context_BTCHW": None}
    texts = ["a seven", "a bold three"]
    torch.testing.assert_close(
        live(lambda number: texts, config, **changes), rollout(texts, config, **changes), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("config", [WINDOW, ANEW])
@pytest.mark.parametrize("changed", range(CONTEXT, FRAMES))
def test_a_prompt_that_changes_changes_its_frame_and_none_before(changed: int, config: SamplingConfig) -> None:
    one = live(lambda number: ["a", "b"], config)
    other = live(lambda number: ["c" if number >= changed else "a", "b"], config)
    change_BT = (one - other).abs().amax(dim=(2, 3, 4))
    # Observed anew, it goes through other products of the same numbers.
    assert float(change_BT[1].max()) <= (1e-9 if config is ANEW else 0), "another video's"
    assert torch.equal(change_BT[0, : changed - CONTEXT], torch.zeros(changed - CONTEXT, dtype=torch.float64))
    assert float(change_BT[0, changed - CONTEXT]) > 1e-4, "the frame it leads to"


def turning(number: int) -> list[str]:
    return ["a" if number < 5 else "c", "b"]


@pytest.mark.parametrize("config", [FAST, WINDOW, WINDOW.changed(guidance=2.0)])
def test_a_history_observed_anew_differs_where_the_prompt_changes_and_nowhere_else(config: SamplingConfig) -> None:
    anew = config.changed(prompt_change="observe_anew")
    assert torch.equal(live(lambda number: ["a", "b"], anew), live(lambda number: ["a", "b"], config))
    assert torch.equal(rollout(["a", "b"], anew), rollout(["a", "b"], config))
    change_BT = (live(turning, anew) - live(turning, config)).abs().amax(dim=(2, 3, 4))
    assert torch.equal(change_BT[:, : 5 - CONTEXT], torch.zeros(2, 5 - CONTEXT, dtype=torch.float64))
    assert float(change_BT[0, 5 - CONTEXT :].min()) > 1e-4 and float(change_BT[1].max()) <= 1e-9


@pytest.mark.parametrize("temporal", ["softmax", "gated_linear"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("longer", ["window", "interpolate"])
@pytest.mark.parametrize(("change", "later"), [(4, 0), (5, 0), (5, 3)])
def test_a_history_observed_anew_is_that_of_the_new_prompt(
    temporal: str, guidance: float, level: int, longer: str, change: int, later: int
) -> None:
    """Also with fewer frames in view than there is room for, and when a window has slid since: it shows old frames."""
    config = ANEW.changed(guidance=guidance, longer=longer)
    model = tiny_model(MODEL.model_copy(update={"temporal": temporal, "state_width": 4})).double().eval()
    tokens_BTNC = torch.randn(2, FRAMES, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    level_B, ones_B = torch.full((2,), level), torch.ones(2, dtype=torch.long)
    new, old = byte_text(["c", "d"], LENGTH), byte_text(["a", "b"], LENGTH)
    z_GBmD = []
    for first in (old, new):
        conditions = Conditions(ones_B, level_B, text_BLE=no_text(MODEL, 2))
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        sampler = PreparedSampler(model, config, conditions, generators, FRAMES)
        with torch.inference_mode():
            sampler.begin(config, conditions, generators)
            for number in range(change + later):
                sampler.lead(text_BLE=first if number < change else new)
                sampler.observe(tokens_BTNC[:, number : number + 1])
            sampler.lead(text_BLE=new)
            masked_BN = torch.ones(2, 6, dtype=torch.bool)
            z_GBmD.append(sampler.masked_pass(tokens_BTNC[:, 0], masked_BN, torch.tensor([[0, 3], [1, 5]])).clone())
    torch.testing.assert_close(z_GBmD[0], z_GBmD[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("config", [FAST, WINDOW.changed(guidance=2.0)])
def test_a_video_obeys_its_own_text_alone_and_in_any_batch(config: SamplingConfig) -> None:
    together = rollout(["a", "a longer one"], config)
    torch.testing.assert_close(rollout(["a"], config), together[:1], atol=1e-9, rtol=0)
    other = rollout(["a", "b"], config)
    torch.testing.assert_close(other[0], together[0], atol=1e-9, rtol=0)
    assert float((other[1] - together[1]).abs().amax(dim=(1, 2, 3)).min()) > 1e-4


def test_guidance_leads_from_the_negative_text_else_from_none() -> None:
    guided = WINDOW.changed(guidance=3.0)
    ones_B = torch.ones(2, dtype=torch.long)

    def away_from(negative: str) -> Tensor:
        text_BLE, negative_BLE = byte_text(["a", "b"], LENGTH), byte_text([negative] * 2, LENGTH)
        return rollout(
            ["", ""], guided, conditions=Conditions(ones_B, ones_B, text_BLE=text_BLE, negative_BLE=negative_BLE)
        )

    torch.testing.assert_close(away_from(""), rollout(["a", "b"], guided), atol=1e-9, rtol=0)
    assert not torch.allclose(away_from("a long negative"), away_from(""), atol=1e-4)
    # Nothing is strengthened where both halves are the same.
    torch.testing.assert_close(rollout(["", ""], guided), rollout(["", ""]), atol=1e-9, rtol=0)
    torch.testing.assert_close(away_from("a")[:1], rollout(["a", "b"])[:1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("negative", ["", "c"])
def test_guidance_that_hardly_leads_gives_the_video_of_the_prompt_not_of_the_negative(negative: str) -> None:
    hardly, ones_B = WINDOW.changed(guidance=1 + 1e-9), torch.ones(2, dtype=torch.long)
    text_BLE, negative_BLE = byte_text(["a", "b"], LENGTH), byte_text([negative] * 2, LENGTH)
    guided = rollout(["", ""], hardly, conditions=Conditions(ones_B, ones_B, None, None, text_BLE, negative_BLE))
    nothing = Conditions(ones_B, ones_B, None, None, no_text(MODEL, 2), negative_BLE)
    asked = live(lambda number: ["a", "b"], hardly, conditions=nothing)
    for video in (guided, asked):
        torch.testing.assert_close(video, rollout(["a", "b"]), atol=1e-5, rtol=0)
        assert not torch.allclose(video, rollout([negative] * 2), atol=1e-3)


def test_a_held_sampler_forgets_the_text_of_the_last_video() -> None:
    samplers = SamplerCache()
    first = rollout(["a", "b"], samplers=samplers)
    live(lambda number: ["c", "d"], samplers=samplers)
    assert torch.equal(rollout(["a", "b"], samplers=samplers), first)


def test_a_text_is_read_once_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = TextTokens.forward
    monkeypatch.setattr(TextTokens, "forward", lambda self, text: calls.append(len(text)) or plain(self, text))
    rollout(["a", "b"])
    constant = len(calls)
    calls.clear()
    live(turning)
    assert len(calls) == constant + 2, "one more for each of two prompts"


# What a user gives


def text_pipeline(**changes: Any) -> MagiPipeline:
    config = Config(
        data=DataConfig(frames=4, height=8, width=16, interval_max=2),
        vae=VaeConfig(pixel_stride=4),
        model=MODEL.model_copy(update=changes),
        sampling=WINDOW,
    )
    vae = SoftVae(4)
    return MagiPipeline(tiny_model(config.model, latent_shape(vae, config.data)).double(), vae, config)


def test_prompts_are_one_for_all_or_one_a_video_and_none_is_the_empty_one() -> None:
    pipe = text_pipeline()
    two = pipe(frames=3, prompt=["a", "b b"]).video_BTHWC
    assert len(two) == 2 and not torch.equal(two[0], two[1])
    assert torch.equal(pipe(frames=3, prompt=" b \n b", seeds=[1]).video_BTHWC[0], two[1])
    same = [pipe(frames=3, prompt=prompt, seeds=[0]).video_BTHWC for prompt in (None, "", [None], lambda number: None)]
    assert all(torch.equal(same[0], other) for other in same)
    with pytest.raises(ValueError, match=r"prompt: expected 1 or 3 \(one a video\), got 2"):
        pipe(frames=3, prompt=["a", "b"], seeds=[1, 2, 3])


def test_a_callable_is_asked_when_a_frame_begins_those_of_the_context_first() -> None:
    pipe, log = text_pipeline(), list[str]()

    def ask(number: int) -> str:
        log.append(f"asked {number}")
        return "a"

    frames = pipe.stream(frames=4, context=some_video(2), prompt=ask)
    for number, _ in enumerate(frames, start=2):
        log.append(f"frame {number}")
    assert log == ["asked 0", "asked 1", "asked 2", "frame 2", "asked 3", "frame 3"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * 10_000, r"prompt: text of 10,000 bytes; the model reads 20, make it shorter"),
        ("\U0001f43b" * 6, "prompt: text of 24 bytes"),
        ("a\x1b[0m", r"prompt: character 1 is U\+001B, which is no text; remove it"),
        ("\udce9", r"U\+DCE9"),
        (["a", 7], "prompt: expected a text, got '7'"),
    ],
)
def test_a_prompt_that_the_model_cannot_read_is_one_line_before_any_frame(prompt: Any, message: str) -> None:
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(ValueError, match=message) as refused:
            text_pipeline().stream(frames=3, seeds=[0, 1], **{name: prompt})
        assert "\n" not in str(refused.value) and str(refused.value).startswith(name)


def test_an_emoji_is_text() -> None:
    pipe = text_pipeline()
    one, other = (pipe(frames=2, prompt=prompt).video_BTHWC for prompt in ("a \U0001f43b", "a \U0001f984"))
    assert not torch.equal(one, other)


def test_a_bad_answer_names_its_frame() -> None:
    frames = text_pipeline().stream(frames=3, prompt=lambda number: "a" if number < 2 else "x" * 30)
    next(frames), next(frames)
    with pytest.raises(ValueError, match="prompt of frame 2: text of 30 bytes"):
        next(frames)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_model_without_text_takes_no_prompt(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: this model has no text; leave it out"):
        tiny_pipeline().stream(frames=3, **{name: "a"})  # type: ignore[arg-type]


def test_a_model_of_a_frozen_encoder_needs_it_for_a_prompt() -> None:
    pipe = text_pipeline(text_encoder="frozen", text_width=6)
    assert pipe(frames=2).video_BTHWC.shape[1] == 2
    with pytest.raises(ValueError, match="prompt: this model reads the states of a frozen encoder"):
        pipe(frames=2, prompt="a")
    pipe.text_encoder = lambda texts: torch.full((len(texts), 2, 6), float(len(texts[0])))
    assert not torch.equal(pipe(frames=2, prompt="a").video_BTHWC, pipe(frames=2).video_BTHWC)
