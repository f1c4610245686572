"""Claims: context latents know no later frame, whatever the autoencoder; the measure tells a leaky one from a causal.

Held for every adapter that compresses time, for the latents themselves, for the pipeline, and for `magi sample`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from magi.cli.main import main
from magi.cli.sample import read_context
from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, VaeConfig
from magi.data.video_writer import write_mp4
from magi.model.magi import Magi
from magi.sampling import pipeline as pipeline_module
from magi.sampling.pipeline import MagiPipeline
from magi.vae.adapters import load_vae
from magi.vae.causality import CAUSAL_BELOW, measure_leak
from magi.vae.contract import VideoAutoencoder, latent_shape
from magi.vae.pixel import PixelVae
from tests.fakes.tiny_vaes import any_tiny_vae, some_video, tiny_vae

CONTEXT, WHOLE = {"cosmos": 5, "ltx": 9, "omni": 5}, {"cosmos": 9, "ltx": 17, "omni": 9}
SIDE = {"cosmos": 16, "ltx": 32, "omni": 16}


@pytest.fixture(scope="module")
def vaes() -> dict[str, VideoAutoencoder]:
    made = {name: any_tiny_vae(name) for name in CONTEXT}
    for vae in made.values():
        vae.normalize(vae.raw_units().model_copy(update={"source": "a test"}))
    return dict(made)


@pytest.mark.parametrize("name", CONTEXT)
def test_changing_later_frames_changes_no_latent_of_the_context(name: str, vaes: dict[str, VideoAutoencoder]) -> None:
    vae, context = vaes[name], CONTEXT[name]
    one = some_video(1, WHOLE[name], SIDE[name], SIDE[name])
    other = torch.cat([one[:, :context], 255 - one[:, context:]], dim=1)
    assert not torch.equal(vae.encode(one)[:, -1], vae.encode(other)[:, -1]), "the future matters to later latents"
    assert torch.equal(vae.encode(one[:, :context]), vae.encode(other[:, :context]))


@pytest.mark.parametrize("name", CONTEXT)
def test_the_measure_tells_a_leaky_encoder_from_a_causal_one(name: str, vaes: dict[str, VideoAutoencoder]) -> None:
    leak = measure_leak(vaes[name], some_video(1, WHOLE[name], SIDE[name], SIDE[name]), CONTEXT[name])
    assert (leak.context_frames, leak.context_latents) == (CONTEXT[name], 2)
    if name == "omni":
        assert leak.leaks and leak.encoder > 10 * CAUSAL_BELOW and leak.decoder > 1
    else:
        assert not leak.leaks and leak.encoder < CAUSAL_BELOW
        assert (leak.decoder <= 1) == vaes[name].streams, "a decoder that streams looks at no later latent"


def test_the_measure_notices_an_encoder_that_looks_ahead_a_little() -> None:
    """The same class with a causal and with a centred encoder, so only the direction of its look differs."""
    video_BTHWC = some_video(1, 17, 32, 32)
    assert measure_leak(tiny_vae("ltx", encoder_causal=False), video_BTHWC, 9).leaks
    assert not measure_leak(tiny_vae("ltx", encoder_causal=True), video_BTHWC, 9).leaks
    assert measure_leak(tiny_vae("ltx", decoder_causal=True), video_BTHWC, 9).decoder <= 1
    still = measure_leak(PixelVae(4), some_video(1, 3, 8, 8), 1)
    assert (still.encoder, still.decoder) == (0.0, 0)


@pytest.mark.parametrize("context", [0, 9, 4])
def test_lengths_that_cannot_be_compared_are_refused(context: int, vaes: dict[str, VideoAutoencoder]) -> None:
    with pytest.raises(ValueError, match=f"^{context} frames|context_frames {context}"):
        measure_leak(vaes["cosmos"], some_video(1, 9, 16, 16), context)


def tiny_pipeline(name: str, vae: VideoAutoencoder) -> MagiPipeline:
    frames = vae.latent_frames(WHOLE[name])
    config = Config(
        data=DataConfig(frames=WHOLE[name], height=SIDE[name], width=SIDE[name], interval_max=1),
        vae=VaeConfig(name=name),  # type: ignore[arg-type]
        model=ModelConfig(
            width=16, blocks=1, heads=2, patch_size=1, frames=frames, head_width=16, head_blocks=1, class_tokens=1,
            interval_vocabulary=1, diffusion_steps=20,
        ),
        sampling=SamplingConfig(iterations=1, steps=2, longer="window", window_keep=1),
    )  # fmt: skip
    return MagiPipeline(Magi(config.model, latent_shape(vae, config.data), torch.Generator()), vae, config)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the sampler was given as context, call by call."""
    seen: list[torch.Tensor] = []
    plain = pipeline_module.generate

    def spy(model: Any, **arguments: Any) -> Any:
        seen.append(arguments["context_BTCHW"])
        return plain(model, **arguments)

    monkeypatch.setattr(pipeline_module, "generate", spy)
    return seen


@pytest.mark.parametrize("name", CONTEXT)
def test_the_pipeline_gives_the_model_the_latents_of_the_context_alone(
    name: str, vaes: dict[str, VideoAutoencoder], contexts: list[torch.Tensor]
) -> None:
    vae, context_BTHWC = vaes[name], some_video(1, CONTEXT[name], SIDE[name], SIDE[name])
    result = tiny_pipeline(name, vae)(frames=WHOLE[name], context=context_BTHWC)
    assert torch.equal(contexts[0], vae.encode(context_BTHWC))
    assert result.video_BTHWC.shape == (1, WHOLE[name], SIDE[name], SIDE[name], 3)
    assert torch.equal(result.video_BTHWC[:, : CONTEXT[name]], context_BTHWC)


@pytest.mark.parametrize("name", CONTEXT)
def test_magi_sample_encodes_the_context_frames_of_a_longer_file_alone(
    name: str, vaes: dict[str, VideoAutoencoder], contexts: list[torch.Tensor], tmp_path: Path
) -> None:
    vae, context = vaes[name], CONTEXT[name]
    tiny_pipeline(name, vae).save_pretrained(tmp_path / "model")
    assert load_vae(VaeConfig(name=name, weights=str(tmp_path / "model" / "vae"))).id == vae.id  # type: ignore[arg-type]
    path = tmp_path / "clip.mp4"
    write_mp4(path, some_video(WHOLE[name], SIDE[name], SIDE[name]).numpy(), fps=25)
    words = ["sample", tmp_path / "model", tmp_path / "out", "--frames", WHOLE[name], "--context", path]
    assert main([*map(str, words), "--context-frames", str(context), "--device", "cpu"]) == 0
    size = DataConfig(height=SIDE[name], width=SIDE[name])
    whole_BTHWC = torch.from_numpy(read_context(path, 0, 1, size).video_THWC)[None]
    assert whole_BTHWC.shape[1] == WHOLE[name]
    assert torch.equal(contexts[0], vae.encode(whole_BTHWC[:, :context]))
    if name == "omni":
        assert not torch.allclose(contexts[0], vae.encode(whole_BTHWC)[:, :2], atol=CAUSAL_BELOW)
