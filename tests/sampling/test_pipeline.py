"""Pixels in, pixels out: the stream is the call, the context comes back untouched and is encoded on its own."""

import copy
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, VaeConfig
from magi.errors import NumericsError
from magi.model.frame_pass import FramePass
from magi.model.magi import Magi
from magi.sampling.history import History
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import PreparedSampler
from magi.vae.contract import VideoAutoencoder, decode_at_the_end, latent_shape
from magi.vae.pixel import PixelVae


class SoftVae(PixelVae):
    """An untrained model's latents are far out of range: folded back, so that a difference is seen, not clamped."""

    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        return super().decode(latents_BTCHW.sin())


class PairVae(SoftVae):
    """Compresses time: a first frame alone, then pairs, of which only the second frame is kept (17 -> 9)."""

    temporal_stride = 2
    streams = False

    def latent_frames(self, frames: int) -> int:
        if frames % 2 == 0:
            raise ValueError(f"{frames} frames: expected an odd number")
        return (frames + 1) // 2

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        self.latent_frames(video_BTHWC.shape[1])
        return super().encode(video_BTHWC)[:, ::2]

    def decode(self, latents_BTCHW: Tensor) -> Tensor:
        video_BTHWC = super().decode(latents_BTCHW)
        return torch.cat([video_BTHWC[:, :1], video_BTHWC[:, 1:].repeat_interleave(2, dim=1)], dim=1)

    def decode_stream(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        return decode_at_the_end(self, latents)


def tiny_pipeline(
    vae: VideoAutoencoder | None = None, forcing: Literal["complete", "masked"] = "complete", classes: int = 2
) -> MagiPipeline:
    config = Config(
        data=DataConfig(frames=3, height=8, width=16, interval_max=3),
        vae=VaeConfig(pixel_stride=4),
        model=ModelConfig(
            width=16, blocks=1, heads=2, patch_size=2, frames=3, head_width=16, head_blocks=1, classes=classes,
            class_tokens=1, interval_vocabulary=3, teacher_forcing=forcing, diffusion_steps=20,
        ),
        sampling=SamplingConfig(iterations=2, steps=3, longer="window", window_keep=2),
    )  # fmt: skip
    vae = vae or SoftVae(4)
    generator = torch.Generator().manual_seed(0)
    model = Magi(config.model, latent_shape(vae, config.data), generator)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return MagiPipeline(model.double(), vae, config, ["cat", "dog"] if classes else None)


def some_video(*lead: int) -> Tensor:
    return torch.randint(256, (*lead, 8, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("forcing", ["complete", "masked"])
@pytest.mark.parametrize("context", [0, 1, 2, 5])
def test_the_stream_is_the_call_and_the_context_comes_back_untouched(
    forcing: Literal["complete", "masked"], context: int
) -> None:
    pipe, given = tiny_pipeline(forcing=forcing), some_video(2, context)
    arguments: dict[str, Any] = {"frames": 7, "context": given if context else None, "labels": "dog", "seeds": [3, 4]}
    result = pipe(**arguments)
    assert result.video_BTHWC.shape == (2, 7, 8, 16, 3)
    assert result.video_BTHWC.dtype == torch.uint8
    assert result.context_frames == context
    assert torch.equal(result.video_BTHWC[:, :context], given)
    streamed = list(pipe.stream(**arguments))
    assert torch.equal(torch.stack(streamed, dim=1), result.video_BTHWC[:, context:])
    assert not torch.equal(result.video_BTHWC[0, context:], result.video_BTHWC[1, context:])


def test_a_frame_is_there_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, passes = tiny_pipeline(), []
    plain = FramePass.predict
    monkeypatch.setattr(FramePass, "predict", lambda *arguments: passes.append(0) or plain(*arguments))
    stream = pipe.stream(frames=1000, seeds=[0])
    for frame in range(1, 4):
        next(stream)
        assert len(passes) == 2 * frame


@pytest.mark.parametrize("change", ["labels", "interval", "seeds", "context", "sampling"])
def test_everything_that_is_asked_for_matters(change: str) -> None:
    pipe = tiny_pipeline()
    asked: dict[str, Any] = {
        "frames": 4, "context": some_video(1), "labels": "cat", "interval": 1, "seeds": [0],
    }  # fmt: skip
    other = {
        "labels": "dog", "interval": 3, "seeds": [1], "context": 255 - some_video(1),
        "sampling": {"noise_level": 5},
    }[change]  # fmt: skip
    plain, changed = pipe(**asked), pipe(**asked | {change: other})
    assert not torch.equal(plain.video_BTHWC[:, 1:], changed.video_BTHWC[:, 1:])
    assert torch.equal(plain.video_BTHWC, pipe(**asked).video_BTHWC)


def test_one_context_serves_all_seeds_and_a_video_is_the_same_alone() -> None:
    pipe, context = tiny_pipeline(), some_video(2)
    together = pipe(
        frames=5, context=context, labels=["cat", "dog"], seeds=[3, 4], sampling={"guidance": 2.0}
    ).video_BTHWC
    alone = pipe(frames=5, context=context.numpy(), labels=1, seeds=[4], sampling={"guidance": 2.0}).video_BTHWC
    assert (together[1].int() - alone[0].int()).abs().max() <= 1  # rounding of a pixel
    assert pipe(frames=2, labels=["cat", "dog", None]).video_BTHWC.shape[0] == 3


def test_every_video_has_its_own_conditions_seed_and_context_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the history is given, under guidance: with the label first, then without."""
    pipe, begun, observed = tiny_pipeline(), [], []
    begin, observe = History.begin, History.observe
    monkeypatch.setattr(History, "begin", lambda self, *given: begun.append((self, *given)) or begin(self, *given))
    monkeypatch.setattr(History, "observe", lambda self, *given: observed.append(*given) or observe(self, *given))
    context = some_video(2, 2)
    asked: dict[str, Any] = {"frames": 4, "context": context, "interval": 3, "seeds": [5, 9]}
    pipe(labels=["dog", "cat"], sampling={"noise_level": 4, "guidance": 2.0}, **asked)
    history, conditions, generators = begun[-1]
    assert conditions.label_B.tolist() == [1, 0, 2, 2]
    assert conditions.interval_B.tolist() == [3] * 4 and conditions.noise_level_B.tolist() == [4] * 4
    assert history.amplitudes == pytest.approx([0.49, 0.49]), "the noise that level 4 promises"
    assert [generator.initial_seed() for generator in generators] == [5, 9]
    expected_BTNC = pipe.model.patchify(pipe.vae.encode(context))
    assert torch.equal(observed[0], expected_BTNC) and not torch.equal(*expected_BTNC.unbind(1))
    assert [tokens_BTNC.shape[1] for tokens_BTNC in observed] == [2, 1], "the context at once, then what was made"
    pipe(labels="dog", sampling={"guidance": 1.0}, **asked)
    assert begun[-1][1].label_B.tolist() == [1, 1] and begun[-1][0].amplitudes == [0, 0]


def test_frames_are_observed_in_the_order_in_which_they_are_yielded(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, observed = tiny_pipeline(), []
    observe = History.observe
    monkeypatch.setattr(History, "observe", lambda self, *given: observed.append(*given) or observe(self, *given))
    video_BTHWC = pipe(frames=3, seeds=[1, 2]).video_BTHWC
    decoded_BTHWC = pipe.vae.decode(pipe.model.unpatchify(torch.cat(observed, dim=1)).float())
    assert torch.equal(decoded_BTHWC, video_BTHWC[:, :-1]), "and the last one never is"


def test_the_context_is_encoded_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = tiny_pipeline(), []
    plain = PixelVae.encode
    monkeypatch.setattr(PixelVae, "encode", lambda self, video: seen.append(tuple(video.shape)) or plain(self, video))
    pipe(frames=6, context=some_video(3), seeds=[1, 2])
    assert seen == [(1, 3, 8, 16, 3)], "once for all seeds, and no frame more than the context"


def test_an_autoencoder_that_compresses_time_decodes_the_clip_as_a_whole() -> None:
    pipe = tiny_pipeline(PairVae(4))
    result = pipe(frames=7, context=some_video(3))
    assert result.video_BTHWC.shape == (1, 7, 8, 16, 3)
    assert torch.equal(result.video_BTHWC[:, :3], some_video(1, 3))
    assert torch.equal(result.video_BTHWC[:, 3], result.video_BTHWC[:, 4]), "a pair from one latent frame"
    assert torch.equal(torch.stack(list(pipe.stream(frames=5)), 1), pipe(frames=5).video_BTHWC)
    with pytest.raises(ValueError, match="odd"):
        pipe(frames=7, context=some_video(2))


def test_longer_videos_by_both_ways() -> None:
    pipe, lengths = tiny_pipeline(), {}
    for longer in ("window", "interpolate"):
        lengths[longer] = pipe(frames=9, sampling={"longer": longer}).video_BTHWC
        assert lengths[longer].shape == (1, 9, 8, 16, 3)
    assert not torch.equal(lengths["window"], lengths["interpolate"])
    short = [pipe(frames=3, sampling={"longer": longer}).video_BTHWC for longer in ("window", "interpolate")]
    assert torch.equal(*short)


def prepared_samplers(monkeypatch: pytest.MonkeyPatch) -> list[PreparedSampler]:
    made: list[PreparedSampler] = []
    plain: Any = PreparedSampler.__init__

    def spy(self: PreparedSampler, *arguments: Any) -> None:
        made.append(self)
        plain(self, *arguments)

    monkeypatch.setattr(PreparedSampler, "__init__", spy)
    return made


def test_calls_start_from_what_the_last_one_made_and_moving_frees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, made = tiny_pipeline(), prepared_samplers(monkeypatch)
    arguments: dict[str, Any] = {"frames": 5, "context": some_video(2), "labels": ["cat", "dog"]}
    expected = pipe(**arguments).video_BTHWC
    assert torch.equal(pipe(**arguments).video_BTHWC, expected) and len(made) == 1
    stream = pipe.stream(**arguments | {"seeds": [5, 6]})
    next(stream)
    stream.close()
    assert torch.equal(pipe(**arguments).video_BTHWC, expected) and len(made) == 1, "closed streams give back"
    assert torch.equal(copy.deepcopy(pipe)(**arguments).video_BTHWC, expected) and len(made) == 2
    assert torch.equal(pipe.to("cpu")(**arguments).video_BTHWC, expected) and len(made) == 3
    pipe.at_speed("full")(**arguments)
    assert len(made) == 4, "its own"
    with torch.no_grad():
        pipe.model.head.output.weight.data.zero_()  # leaves no trace
    pipe.forget()
    assert not torch.equal(pipe(**arguments).video_BTHWC, expected) and len(made) == 5


def test_users_of_one_pipeline_at_the_same_time_have_their_own_videos() -> None:
    """As a server's threads are: frames of one another would show up at once."""
    pipe, users = tiny_pipeline(), range(4)
    pipe.model.eval()
    asked: list[dict[str, Any]] = [{"frames": 9, "labels": user % 2, "seeds": [user]} for user in users]
    expected = [pipe(**one).video_BTHWC for one in asked]
    with ThreadPoolExecutor(len(users)) as pool:
        for _ in range(3):
            made = pool.map(lambda one: pipe(**one).video_BTHWC, asked)
            assert all(map(torch.equal, made, expected))


def test_mistakes_are_told_before_a_frame_is_made() -> None:
    pipe = tiny_pipeline()
    for arguments, message in (
        ({"frames": 3, "context": some_video(3)}, "leave none to generate"),
        ({"frames": 3, "labels": "dgo"}, "did you mean 'dog'"),
        ({"frames": 3, "labels": 2}, r"expected 0\.\.1"),
        ({"frames": 3, "interval": 4}, r"1\.\.3"),
        ({"frames": 3, "sampling": {"steps": 0}}, "sampling: steps"),
        ({"frames": 3, "sampling": {"iterations": 9}}, r"sampling.iterations: expected 1\.\.2"),
        ({"frames": 3, "sampling": {"iteration": 2}}, "sampling: iteration: unknown key; did you mean 'iterations'"),
        ({"frames": 3, "context": some_video(1)[:, :4]}, "expected 8x16 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.stream(**arguments)
    with pytest.raises(ValueError, match="needs a model with classes"):
        tiny_pipeline(classes=0).stream(frames=3, sampling={"guidance": 2.0})


def test_a_frame_that_is_not_finite_is_an_error_not_a_black_picture() -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.model.head.output.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="generated latent frame 0 is not finite"):
        pipe(frames=2)
    with torch.no_grad():
        pipe.model.head.output.bias.fill_(0.1)
    fresh = MagiPipeline(pipe.model, pipe.vae, pipe.config, pipe.classes)
    assert torch.equal(pipe(frames=5).video_BTHWC, fresh(frames=5).video_BTHWC)


def test_the_result_is_frozen() -> None:
    result = tiny_pipeline(classes=0)(frames=1)
    assert replace(result, context_frames=0) is not result
    with pytest.raises(AttributeError):
        result.context_frames = 1  # type: ignore[misc]
