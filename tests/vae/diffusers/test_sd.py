"""Claims: frames pass one by one, single files load under any of their published names, the real sizes are right."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from magi.config import VaeConfig
from magi.errors import CheckpointError
from magi.vae.adapters import load_vae
from magi.vae.diffusers import sd
from magi.vae.diffusers.sd import SD_CONFIG, SdVae, current_names
from tests.fakes.tiny_vaes import SD, some_video, tiny_network, tiny_vae


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as the first release names them: attention as 1 x 1 convolutions, levels turned round."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("attn_1.group_norm", "attn_1.norm")
        for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            if f"attn_1.{new}." in name:
                name = name.replace(new, old)
                tensor = tensor[:, :, None, None] if name.endswith("weight") else tensor
        for level in range(4):
            name = name.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
            name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{3 - level}.")
        name = (
            name.replace("resnets.", "block.")
            .replace("samplers.0.", "sample.")
            .replace("conv_shortcut", "nin_shortcut")
        )
        renamed[name.replace("conv_norm_out", "norm_out")] = tensor.contiguous()
    return renamed


def older_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the folder of Stable Diffusion 1.4 has them."""
    pairs = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    renamed = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed


def checkpoint(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole model's file, in which the autoencoder is a part."""
    other = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}
    return {f"first_stage_model.{name}": tensor for name, tensor in original_names(state).items()} | other


FORMS = {"diffusers": dict, "older": older_names, "original": original_names, "checkpoint": checkpoint}


@pytest.mark.parametrize("form", FORMS)
def test_a_single_file_loads_under_any_of_its_names(form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sd, "SD_CONFIG", SD_CONFIG | SD)
    vae = tiny_vae("sd")
    save_file(FORMS[form](vae.network.state_dict()), tmp_path / "v1-4.safetensors")
    with pytest.warns(UserWarning, match="published scaling factor"):
        loaded = load_vae(VaeConfig(name="sd", weights=str(tmp_path / "v1-4.safetensors")))
    assert isinstance(loaded, SdVae) and loaded.id == vae.id
    loaded.save(tmp_path / "folder")
    assert load_vae(VaeConfig(name="sd", weights=str(tmp_path / "folder"))).id == loaded.id


def test_a_folder_of_older_names_loads(tmp_path: Path) -> None:
    network = tiny_network("sd")
    network.save_pretrained(tmp_path)
    save_file(older_names(network.state_dict()), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.warns(UserWarning, match="published"):
        loaded = SdVae.load(str(tmp_path))
    assert loaded.id == SdVae(network).id


def test_names_of_today_stay() -> None:
    state = tiny_network("sd").state_dict()
    assert current_names(state).keys() == state.keys()


def test_single_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(path: Path, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=said) as caught:
            SdVae.load(str(path))
        assert "\n" not in str(caught.value)

    pickled = tmp_path / "v1-4.ckpt"
    pickled.write_bytes(b"\x80\x02")
    refused(pickled, CheckpointError, "v1-4.ckpt: pickled weights are refused")
    disguised = tmp_path / "v1-4.safetensors"
    disguised.write_bytes(b"PK\x03\x04 and more")
    refused(disguised, CheckpointError, "v1-4.safetensors: a pickle or zip archive")
    save_file({"weight": torch.zeros(2)}, disguised)
    refused(disguised, CheckpointError, "v1-4.safetensors: weights of another architecture: .* missing")
    with pytest.raises(ValueError, match=r"a file; the cosmos adapter needs a folder"):
        load_vae(VaeConfig(name="cosmos", weights=str(disguised)))


def test_a_frame_is_encoded_and_decoded_as_if_it_were_alone() -> None:
    vae, video_BTHWC = tiny_vae("sd"), some_video(2, 3, 16, 16)
    latents_BTCHW = vae.encode(video_BTHWC)
    for frame in range(3):
        alone_BTCHW = vae.encode(video_BTHWC[:, frame : frame + 1])
        torch.testing.assert_close(alone_BTCHW, latents_BTCHW[:, frame : frame + 1], rtol=1e-4, atol=1e-4)
    whole_BTHWC = vae.decode(latents_BTCHW)
    streamed = list(vae.decode_stream(latents_BTCHW.split(1, dim=1)))
    assert [chunk.shape[1] for chunk in streamed] == [1, 1, 1] and vae.streams
    assert (torch.cat(streamed, dim=1).int() - whole_BTHWC.int()).abs().max() <= 1


def test_at_most_frames_per_batch_frames_pass_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, seen = tiny_vae("sd"), []
    small = SdVae(vae.network, frames_per_batch=4)

    def spy(plain: Any) -> Any:
        return lambda images: seen.append(len(images)) or plain(images)

    monkeypatch.setattr(vae.network, "encode", spy(vae.network.encode))
    monkeypatch.setattr(vae.network, "decode", spy(vae.network.decode))
    small.decode(small.encode(some_video(2, 5, 8, 8)))
    assert seen == [4, 4, 2, 4, 4, 2]


@pytest.mark.slow
def test_the_real_configuration_has_the_published_size() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    values = {key: value for key, value in SD_CONFIG.items()}
    vae = SdVae(AutoencoderKL.from_config(values))
    assert (vae.channels, vae.spatial_stride, vae.temporal_stride) == (4, 8, 1)
    assert sum(parameter.numel() for parameter in vae.network.parameters()) == 83_653_863
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents_BTCHW = vae.encode(some_video(1, 1, 32, 32))
    assert latents_BTCHW.shape == (1, 1, 4, 4, 4) and vae.decode(latents_BTCHW).shape == (1, 1, 32, 32, 3)
