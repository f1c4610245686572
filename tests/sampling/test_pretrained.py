"""A model comes back from a run, an export or the hub as it was; what is damaged, foreign or a pickle is refused."""

import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from magi.config import Config, DataConfig, ModelConfig, SamplingConfig, VaeConfig
from magi.config_files import dump_config, load_config
from magi.errors import CheckpointError
from magi.model.magi import Magi
from magi.sampling.pipeline import MagiPipeline
from magi.training.checkpoint import Checkpoint, save_checkpoint
from magi.vae.contract import latent_shape
from magi.vae.diffusers.small import SmallVae, SmallVaeShape
from magi.vae.normalization import Normalization
from magi.vae.pixel import PixelVae

CONFIG = Config(
    data=DataConfig(root="/somewhere/private", frames=2, height=8, width=8, interval_max=3),
    vae=VaeConfig(pixel_stride=4),
    model=ModelConfig(
        width=16, blocks=1, heads=2, patch_size=1, frames=2, head_width=16, head_blocks=1, classes=2, class_tokens=1,
        diffusion_steps=20,
    ),
    sampling=SamplingConfig(iterations=2, steps=2),
)  # fmt: skip


NEWER = ("temporal", "state_width")
"""Keys of ``model`` that exports had not before there was a second temporal layer."""


def tiny_pipeline(config: Config = CONFIG) -> MagiPipeline:
    vae = PixelVae(4)
    generator = torch.Generator().manual_seed(0)
    model = Magi(config.model, latent_shape(vae, config.data), generator)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return MagiPipeline(model, vae, config, ["cat", "dog"])


def make_run(run: Path, steps: tuple[int, ...] = (10,)) -> MagiPipeline:
    """A run as training leaves it: averaged weights that differ from the trained ones and from step to step."""
    pipe = tiny_pipeline()
    weights = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(CONFIG))
    (run / "classes.json").write_text(json.dumps(["cat", "dog"]))
    for step in steps:
        ema = {name: tensor + step for name, tensor in weights.items()}
        save_checkpoint(run, Checkpoint(weights, ema, {}, {"step": step}), keep=5)
    return pipe


def test_an_export_comes_back_as_it_was(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "new" / "folder")
    loaded = MagiPipeline.from_pretrained(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "README.md", "classes.json", "config.yaml", "manifest.json", "model.safetensors",
    ]  # fmt: skip
    for name, tensor in pipe.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.classes == ("cat", "dog")
    assert torch.equal(loaded(frames=3, labels="dog").video_BTHWC, pipe(frames=3, labels=1).video_BTHWC)
    pipe.save_pretrained(tmp_path / "new" / "folder")  # once more over it


def test_the_temporal_layer_travels_with_an_export_and_an_older_one_is_softmax(tmp_path: Path) -> None:
    linear = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"temporal": "gated_linear"})})
    pipe = tiny_pipeline(linear)
    pipe.save_pretrained(tmp_path / "linear")
    loaded = MagiPipeline.from_pretrained(tmp_path / "linear")
    assert torch.equal(loaded(frames=4, labels=0).video_BTHWC, pipe(frames=4, labels=0).video_BTHWC)
    assert "gated linear attention along time" in (tmp_path / "linear" / "README.md").read_text()
    tiny_pipeline().save_pretrained(tmp_path / "older")
    path = tmp_path / "older" / "config.yaml"
    kept = [line for line in path.read_text().splitlines() if line.split(":")[0].strip() not in NEWER]
    path.write_text("\n".join(kept))
    assert MagiPipeline.from_pretrained(tmp_path / "older").config.model == CONFIG.model


def test_float16_halves_the_file_and_is_read_as_float32(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "half", dtype="float16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = MagiPipeline.from_pretrained(str(tmp_path / "half"))
    for name, tensor in pipe.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor.half().float())
    pipe.model.mask_token.data.fill_(1e6)
    with pytest.raises(ValueError, match="do not fit float16"):
        pipe.save_pretrained(tmp_path / "half", dtype="float16")


def test_an_export_tells_nothing_of_the_makers_disk(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "out")
    written = load_config(tmp_path / "out" / "config.yaml")
    assert written.data.root == "" and written.vae.weights == ""
    assert written.model == CONFIG.model
    card = (tmp_path / "out" / "README.md").read_text()
    assert "private" not in card
    assert "| classes | cat, dog |" in card and "2 frames of 8x8" in card and "`pixel-4`" in card
    assert "| timesteps | 19 to 0 |" in card


def test_a_run_gives_the_averaged_weights_of_its_newest_intact_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipe = make_run(run, steps=(10, 20))
    loaded = MagiPipeline.from_pretrained(run)
    torch.testing.assert_close(loaded.model.mask_token, pipe.model.mask_token + 20)
    assert loaded.classes == ("cat", "dog")
    newest = run / "checkpoints" / "step-000000020" / "ema.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="step-000000020.*falling back to step-000000010"):
        loaded = MagiPipeline.from_pretrained(run)
    torch.testing.assert_close(loaded.model.mask_token, pipe.model.mask_token + 10)
    with pytest.raises(ValueError, match="the folder of a run"):
        pipe.save_pretrained(run)


def test_a_small_autoencoder_travels_with_the_export(tmp_path: Path) -> None:
    shape = SmallVaeShape(channels=2, patch=2, widths=(8, 8), layers=1, norm_groups=8)
    vae = SmallVae(shape)
    vae.normalize(Normalization(weights=vae.id, source="this test", mean=(0.5, 1.0), std=(1.0, 2.0)))
    config = CONFIG.model_copy(update={"vae": VaeConfig(name="small", weights="/somewhere/private/vae")})
    model = Magi(config.model, latent_shape(vae, config.data), torch.Generator())
    MagiPipeline(model, vae, config).save_pretrained(tmp_path / "out")
    state = torch.get_rng_state()
    loaded = MagiPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.vae.id == vae.id and loaded.vae.normalization == vae.normalization
    assert loaded.classes is None
    assert loaded(frames=2).video_BTHWC.shape == (1, 2, 8, 8, 3)


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "out")
    state = torch.get_rng_state()
    MagiPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_model_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    for source in ("nowhere", "/no/where", "./no/where", "../where", "a/b/c", "no where/at all", Path("no/where")):
        with pytest.raises(ValueError, match="no such folder; expected a run, an export"):
            MagiPipeline.from_pretrained(source)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="a file; expected the folder"):
        MagiPipeline.from_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match=r"neither a run nor an export, it has no config.yaml"):
        MagiPipeline.from_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        MagiPipeline.from_pretrained(tmp_path)


def test_a_hub_id_downloads_harmless_files_only_and_a_local_folder_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[str]]] = []
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "snapshot")

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        calls.append((hub_id, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(MagiPipeline.from_pretrained("someone/model").model.mask_token, pipe.model.mask_token)
    assert calls == [("someone/model", ["*.safetensors", "*.json", "*.yaml", "*.md"])]
    pipe.save_pretrained(tmp_path / "someone" / "model")
    MagiPipeline.from_pretrained("someone/model")
    assert len(calls) == 1

    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"^other/model: no such folder, and the hub .* \(cannot reach the hub\)$"):
        MagiPipeline.from_pretrained("other/model")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle"):
        MagiPipeline.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_foreign_exports_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tiny_pipeline().save_pretrained(out)
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        MagiPipeline.from_pretrained(out)
    (out / "model.safetensors").write_bytes(weights)
    (out / "manifest.json").unlink()
    other = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"blocks": 2})})
    (out / "config.yaml").write_text(dump_config(other))
    with pytest.raises(CheckpointError, match="another architecture"):
        MagiPipeline.from_pretrained(out)
    (out / "config.yaml").write_text(dump_config(CONFIG))
    for text, message in (("[", "not readable"), ('{"a": 1}', "list of class names"), ('["a"]', "1 class names")):
        (out / "classes.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            MagiPipeline.from_pretrained(out)


def test_an_export_that_is_not_whole_names_the_file(tmp_path: Path) -> None:
    """What still loads and is another model: a lost or cut file, one bit of the weights, other names of classes."""
    pipe, out = tiny_pipeline(), tmp_path / "out"
    pipe.save_pretrained(out)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    flipped = bytearray(whole["model.safetensors"])
    flipped[-2] ^= 1
    config = whole["config.yaml"]
    sections = config.index(b"sampling:"), config.rindex(b"\n", 0, -5) + 1, len(config) - 4
    for name, held in (
        ("model.safetensors", None),
        ("model.safetensors", bytes(flipped)),
        ("classes.json", b'["dog", "cat"]\n'),
        *(("config.yaml", config[:end]) for end in sections),
    ):
        (out / name).unlink() if held is None else (out / name).write_bytes(held)
        with pytest.raises(CheckpointError, match=rf"^\S+{name}: (missing|damaged|cut)"):
            MagiPipeline.from_pretrained(out)
        (out / name).write_bytes(whole[name])
    (out / "config.yaml").write_bytes(config.replace(b"iterations: 2", b"iterations: 1"))
    assert MagiPipeline.from_pretrained(out).config.sampling.iterations == 1, "a config may be edited"
    for name in ("manifest.json", "model.safetensors"):  # an export of an earlier version
        (out / name).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing from this export"):
        MagiPipeline.from_pretrained(out)


def test_an_export_of_before_there_was_one_precision_loads_or_says_what_to_do(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "config.yaml"
    text = path.read_text()
    assert "  precision: auto\n" in text
    older = "  head_precision: {0}\n  pass_precision: {1}\n"
    path.write_text(text.replace("  precision: auto\n", older.format("bf16", "bf16")))
    assert MagiPipeline.from_pretrained(tmp_path).config.sampling.precision == "bf16"
    path.write_text(text.replace("  precision: auto\n", older.format("model", "bf16")))
    with pytest.raises(ValueError, match=r"^\S+config\.yaml: sampling: .*replace with precision, .*$"):
        MagiPipeline.from_pretrained(tmp_path)
