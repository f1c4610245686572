"""A model that reads a frozen encoder's states, from captions beside videos to a prompt; the encoder is a stand-in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from magi.cli.assemble import open_data
from magi.cli.main import main
from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, TrainingConfig, VaeConfig
from magi.config_files import dump_config
from magi.errors import CheckpointError, DataError
from magi.sampling.pipeline import MagiPipeline
from magi.text.encoder import FrozenChoice, PromptEncoder
from magi.text.frozen import FrozenEncoder
from magi.training.batch import data_identity
from magi.vae.pixel import PixelVae
from tests.fakes.encoded_videos import make_index
from tests.fakes.fake_encoder import FakeEncoder

CHOICE = FrozenChoice("fake-1", "fakes/encoder", 4, 6)


@pytest.fixture(autouse=True)
def encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder in a folder whose name has 'other' is another one."""

    def load(source: str, device: torch.device | None = None) -> FakeEncoder:
        return FakeEncoder(id="fake-2" if "other" in source else "fake-1", source=source)

    monkeypatch.setattr(FrozenEncoder, "load", load)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, all but the last with a caption; two have the same one."""
    root = tmp_path_factory.mktemp("made") / "videos"
    for number, record in enumerate(make_index(root).videos[:5]):
        (root / record.path).with_suffix(".txt").write_text(f"a digit {number % 4}")
    return root


def encode(videos: Path, out: Path, *words: str) -> int:
    return main(["encode-text", str(videos), str(out), "--encoder", "fakes/encoder", "--text-length", "6", *words])


def config_of(videos: Path, states: Path, **model: int) -> Config:
    shape = {"width": 16, "blocks": 1, "heads": 2, "frames": 4, "head_width": 16, "head_blocks": 1,
             "diffusion_steps": 20, "patch_size": 1, "text_tokens": 2, "text_length": 6, "text_width": 4}  # fmt: skip
    return Config(
        data=DataConfig(root=str(videos), frames=4, height=16, width=16, interval_max=2, workers=0,
                        text_states=str(states)),
        vae=VaeConfig(name="pixel", pixel_stride=8),
        model=ModelConfig(**shape | model, text_encoder="frozen"),  # type: ignore[arg-type]
        training=TrainingConfig(steps=2, batch=2, warmup_steps=1, precision="fp32", sample_every=0),
        sampling=SamplingConfig(iterations=1, steps=2),
    )  # fmt: skip


def opened(config: Config):  # type: ignore[no-untyped-def]
    return open_data(config, PixelVae(8), None)


def test_clips_have_the_states_of_their_caption(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(videos, tmp_path / "states") == 0
    out = capsys.readouterr().out
    assert "4 captions, 1 shards written, encoder fake-1" in out
    assert "--model.text-encoder frozen --model.text-width 4 --model.text-length 6" in out and "cut there" not in out
    clips = opened(config_of(videos, tmp_path / "states"))
    assert data_identity(clips).endswith("states of fake-1")
    for sample in range(5):
        clip = clips[sample]
        (expected_LE,) = FakeEncoder().states([clip.caption], 6) if clip.caption else [torch.zeros(0, 4)]
        assert np.array_equal(clip.text_LE, expected_LE.float().numpy())


def test_what_does_not_fit_the_model_is_refused_before_training(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.text_states is empty: name the folder that 'magi encode-text"):
        opened(config_of(videos, tmp_path).model_copy(update={"data": DataConfig(root=str(videos), workers=0)}))
    with pytest.raises(DataError, match="holds no states of captions"):
        opened(config_of(videos, tmp_path))
    assert encode(videos, tmp_path / "states") == 0
    with pytest.raises(ValueError, match=r"states of 4 numbers; set --model.text-width 4"):
        opened(config_of(videos, tmp_path / "states", text_width=5))
    with pytest.raises(ValueError, match=r"states of up to 6 tokens, but model.text_length 5; set it to 6"):
        opened(config_of(videos, tmp_path / "states", text_length=5))
    caption = next(iter(sorted(videos.rglob("*.txt"))))
    before = caption.read_text()
    try:
        caption.write_text("something else")
        with pytest.raises(DataError, match="1 captions have no states, as 'something else': they are other ones"):
            opened(config_of(videos, tmp_path / "states"))
        assert encode(videos, tmp_path / "states") == 2
    finally:
        caption.write_text(before)


def test_from_a_caption_to_a_prompt(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode(videos, tmp_path / "states") == 0
    (tmp_path / "config.yaml").write_text(dump_config(config_of(videos, tmp_path / "states")))
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main(["train", str(tmp_path / "config.yaml"), "--run", run, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "run/text_encoder.json").read_text())["encoder"] == "fake-1"
    sample = ["sample", run, out, "--frames", "2", "--device", "cpu"]
    capsys.readouterr()
    assert main([*sample, "--prompt", "a digit 3"]) == 0
    assert main([*sample, "--prompt", "a digit 3", "--text-encoder", "an/other"]) == 2
    assert "an/other: is the encoder fake-2; the model reads states of fake-1" in capsys.readouterr().err
    assert main([*sample, "--prompt", "a b c d e f g"]) == 2
    assert "prompt: text of 7 tokens, 'a b c d e f g'; 6 are read" in capsys.readouterr().err

    pipe, generator = MagiPipeline.from_pretrained(run), torch.Generator().manual_seed(0)
    for parameter in pipe.model.parameters():  # two steps leave the layers that begin with zeros
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    plain, one, other = (pipe(frames=2, prompt=prompt).video_BTHWC for prompt in (None, "a digit 3", "seven seven"))
    assert torch.equal(plain, pipe(frames=2, prompt="").video_BTHWC)
    assert not torch.equal(one, other) and not torch.equal(one, plain)
    pipe.save_pretrained(tmp_path / "export")
    assert json.loads((tmp_path / "export/text_encoder.json").read_text())["source"] == "fakes/encoder"
    exported = MagiPipeline.from_pretrained(tmp_path / "export", text_encoder="elsewhere")
    assert torch.equal(exported(frames=2, prompt="a digit 3").video_BTHWC, one)
    (tmp_path / "export/text_encoder.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"text_encoder.json: missing or damaged"):
        MagiPipeline.from_pretrained(tmp_path / "export")


def test_prompts_of_a_batch_are_padded_with_zeros_and_no_text_is_zeros() -> None:
    text_BLE = PromptEncoder(CHOICE)(["a digit", "", "seven"])
    assert text_BLE.shape == (3, 2, 4) and not text_BLE[1].any() and not text_BLE[2, 1].any()
    (expected_LE,) = FakeEncoder().states(["a digit"], 6)
    assert torch.equal(text_BLE[0], expected_LE.float()) and text_BLE.dtype == torch.float32


def test_an_encoder_that_is_not_known_here_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"name the folder or hub id of the text encoder fake-1: --text-encoder"):
        PromptEncoder(FrozenChoice("fake-1", "", 4, 6))(["a"])


def test_a_model_of_bytes_takes_no_frozen_encoder() -> None:
    with pytest.raises(ValueError, match="demo reads no states of a frozen encoder; leave it out"):
        MagiPipeline.from_pretrained("demo", text_encoder="fakes/encoder")
