"""Claims: the release's names become those of diffusers, all of them, and the autoencoder is the same."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from magi.cli.main import main
from magi.errors import CheckpointError
from magi.vae.diffusers import cosmos_import
from magi.vae.diffusers.cosmos import CosmosVae
from magi.vae.diffusers.cosmos_import import diffusers_name, import_cosmos
from tests.fakes.tiny_vaes import COSMOS, tiny_network
from tests.fakes.untrusted_files import compiled, read_in_process


def released_name(name: str) -> str:
    """The name that the release's classes give a weight of diffusers' class, written the other way round."""
    name = re.sub(r"up_blocks\.(\d)\.", lambda level: f"up.{2 - int(level[1])}.", name)
    for today, release in (
        ("mid_block.attentions.0.", "mid.attn_1.0."), ("mid_block.temp_attentions.0.", "mid.attn_1.1."),
        ("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
        ("down_blocks.", "down."), ("resnets.", "block."), ("samplers.0.", "sample."),
        (".to_q.", ".q.conv3d."), (".to_k.", ".k.conv3d."), (".to_v.", ".v.conv3d."),
        (".to_out.0.", ".proj_out.conv3d."),
        (".conv_s.", ".0.conv3d."), (".conv_t.", ".1.conv3d."), (".conv_shortcut.", ".nin_shortcut.conv3d."),
    ):  # fmt: skip
        name = name.replace(today, release)
    name = re.sub(r"(sample\.conv[123])\.", r"\1.conv3d.", name)
    return re.sub(r"^(post_quant_conv|quant_conv)\.", r"\1.conv3d.", name)


def release(network: nn.Module) -> dict[str, torch.Tensor]:
    state = {released_name(name): tensor.bfloat16() for name, tensor in network.state_dict().items()}
    constants = {"encoder.patcher3d.wavelets": torch.ones(2), "decoder.unpatcher3d._arange": torch.arange(2)}
    spare = {"encoder.down.0.downsample.conv2.conv3d.weight": torch.ones(8, 8, 3, 1, 1)}
    return state | constants | spare


@pytest.fixture(autouse=True)
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_process(monkeypatch)


PLAIN = COSMOS | {"attention_resolutions": (32,), "resolution": 1024, "latents_mean": None, "latents_std": None}


def test_names_of_the_release() -> None:
    for name, today in (
        ("encoder.conv_in.0.conv3d.weight", "encoder.conv_in.conv_s.weight"),
        ("encoder.down.1.block.0.nin_shortcut.conv3d.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
        ("encoder.down.0.downsample.conv1.conv3d.weight", "encoder.down_blocks.0.downsamplers.0.conv1.weight"),
        ("encoder.mid.attn_1.1.q.conv3d.weight", "encoder.mid_block.temp_attentions.0.to_q.weight"),
        ("encoder.mid.attn_1.0.norm.norm.weight", "encoder.mid_block.attentions.0.norm.norm.weight"),
        ("decoder.mid.block_2.conv2.1.conv3d.weight", "decoder.mid_block.resnets.1.conv2.conv_t.weight"),
        ("decoder.up.2.block.1.conv1.0.conv3d.bias", "decoder.up_blocks.0.resnets.1.conv1.conv_s.bias"),
        ("decoder.up.1.upsample.conv3.conv3d.weight", "decoder.up_blocks.1.upsamplers.0.conv3.weight"),
        ("decoder.norm_out.norm.bias", "decoder.norm_out.norm.bias"),
        ("post_quant_conv.conv3d.weight", "post_quant_conv.weight"),
    ):
        assert diffusers_name(name, levels=3) == today


def test_the_release_becomes_the_same_autoencoder(tmp_path: Path) -> None:
    network = tiny_network("cosmos", **PLAIN)
    for parameter in network.parameters():
        parameter.data = parameter.data.bfloat16().float()
    path = compiled(release(network), tmp_path / "autoencoder.jit")
    made = import_cosmos(path, tmp_path / "out", PLAIN)
    loaded = CosmosVae.load(str(tmp_path / "out"))
    assert loaded.id == made.weights_id == CosmosVae(network).id
    assert made.spare == 1 and made.parameters == sum(parameter.numel() for parameter in network.parameters())
    with pytest.raises(ValueError, match="out: exists already"):
        import_cosmos(path, tmp_path / "out", PLAIN)


def test_the_command_tells_a_compiled_module_from_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cosmos_import, "RELEASED", PLAIN)
    path = compiled(release(tiny_network("cosmos", **PLAIN)), tmp_path / "autoencoder.jit")
    assert main(["vae", "import", str(path), str(tmp_path / "out"), "--sha256", "0"]) == 5
    assert "SHA-256 is" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["vae", "import", str(path), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "1 tensors of layers that the tokenizer never uses" in said
    assert f"next: magi vae check cosmos:{tmp_path / 'out'} DATA" in said


@pytest.mark.parametrize("change", ["gone", "more", "shape"])
def test_a_release_that_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    state = release(tiny_network("cosmos", **PLAIN))
    if change == "gone":
        state.pop("decoder.mid.block_1.conv1.1.conv3d.weight")
    elif change == "more":
        state["decoder.extra.weight"] = torch.zeros(1)
    else:
        state["quant_conv.conv3d.bias"] = torch.zeros(3)
    path = compiled(state, tmp_path / "autoencoder.jit")
    with pytest.raises(CheckpointError, match="weights of another architecture") as caught:
        import_cosmos(path, tmp_path / "out", PLAIN)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
