"""Claims: a released checkpoint is imported whole and exact, or not at all; one line says why."""

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from magi.errors import CheckpointError
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.import_weights import import_released
from magi.weights import sha256
from tests.fakes.omni_vectors import SMALL, network, pixels, released_tensors, vector
from tests.fakes.untrusted_files import read_in_process

KERNEL = "encoder.enc_spatial_transformer.layers.0.0.dsconv.weight"
TABLE = "encoder.enc_spatial_transformer.layers.1.1.relative_position_index"
SHIFT = "decoder.dec_spatial_transformer.norm_out.beta"


def arguments(**changes: Any) -> argparse.Namespace:
    """The hyper-parameters as a released file keeps them: two flags misspelt, and things that mean nothing."""
    values = dict(vector()["configs"]["small"])
    for flag in ("in_temporal_transformer", "in_peg"):
        values[f"casual_{flag}"] = values.pop(f"causal_{flag}")
    return argparse.Namespace(**(values | {"q_strides": "1,1,1", "gpus": [0, 1]} | changes))


def checkpoint(path: Path, tensors: dict[str, Any] | None = None, **extra: Any) -> Path:
    """Write a look-alike of a released file: other networks and the optimizer's state are in it, too."""
    state = released_tensors("small") if tensors is None else tensors
    others = {"codebook.embeddings": torch.zeros(16, 4), "video_discriminator.0.weight": torch.zeros(3)}
    values = {
        "state_dict": state | others,
        "hyper_parameters": {"args": arguments()},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
        "epoch": 3,
    }
    torch.save(values | extra, path)
    return path


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors with some replaced, or left out for None."""
    state: dict[str, torch.Tensor | None] = {**released_tensors("small"), **tensors}
    return {name: value for name, value in state.items() if value is not None}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("omni")
    import_released(checkpoint(folder / "released.ckpt"), folder / "out" / "omni")
    yield folder


def test_an_imported_checkpoint_is_the_network_of_its_tensors(imported: Path) -> None:
    vae = OmniVae.load(imported / "out" / "omni")
    for name, value in network("small").state_dict().items():
        assert torch.equal(vae.network.state_dict()[name], value), name
    expected = torch.tensor(vector()["cases"]["small_video"]["full"]["latent_mean"])
    with torch.no_grad():
        mean_BTCHW = vae.network.moments(pixels("small_video")).mean_BTCHW
    assert (mean_BTCHW.transpose(1, 2).flatten() - expected).abs().max() < 1e-4
    assert vae.shape == SMALL.model_copy(update={"source_sha256": sha256(imported / "released.ckpt")})
    assert [path.name for path in (imported / "out").iterdir()] == ["omni"]  # nothing unfinished is left


def test_the_report_counts_what_came_in_and_what_stayed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_process(monkeypatch)
    path = checkpoint(tmp_path / "released.ckpt", changed(**{SHIFT: torch.full((40,), 0.5)}))
    report = import_released(path, tmp_path / "omni", expected_sha256=sha256(path).upper())
    assert report.id == OmniVae.load(tmp_path / "omni").id and report.source_sha256 == sha256(path)
    assert report.tensors == len(list(network("small").parameters()))
    assert any(SHIFT in note for note in report.notes)
    assert any("codebook (1), video_discriminator (1)" in note for note in report.notes)
    assert not any("magi vae check" in note for note in report.notes), "statistics are measured by encode or train"
    loaded = OmniVae.load(tmp_path / "omni").network.decoder.spatial.norm_out.beta
    assert torch.equal(loaded, torch.full((40,), 0.5))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({KERNEL: None}, f"{KERNEL} missing"),
    ({KERNEL: torch.zeros(40, 1, 3, 3, 1)}, f"{KERNEL} has \\(40, 1, 3, 3, 1\\), expected \\(40, 1, 3, 3, 3\\)"),
    ({"encoder.new.weight": torch.zeros(1)}, "encoder.new.weight unknown"),
    ({"encoder.two\nlines": torch.zeros(1)}, "names that are not plain text"),
    ({KERNEL: torch.full((40, 1, 3, 3, 3), float("nan"))}, "non-finite weights in encoder.spatial.layers.0.peg"),
    ({KERNEL: torch.zeros((40, 1, 3, 3, 3), dtype=torch.int64)}, "no floating-point numbers"),
    ({TABLE: torch.zeros((4, 4), dtype=torch.int64)}, "not the order of a 2 x 2 window"),
    ({"pre_vq_conv.1.weight": torch.zeros(4, 40), "pre_vq_conv.1.bias": torch.zeros(4)}, "the quantised tokenizer"),
]


@pytest.mark.parametrize(("tensors", "message"), WRONG, ids=[message[:24] for _, message in WRONG])
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any], message: str
) -> None:
    read_in_process(monkeypatch)
    path = checkpoint(tmp_path / "released.ckpt", changed(**tensors))
    _refused(path, tmp_path / "omni", message)


HYPER_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"spatial_pos": "rel"}, "spatial_pos is 'rel', only 'rope' is supported"),
    ({"casual_in_peg": False}, "casual_in_peg is False"),
    ({"patch_embed": "cnn"}, "patch_embed is 'cnn'"),
    ({"gen_upscale": 2}, "gen_upscale is 2"),
    ({"enc_block": "tt"}, "not the released architecture"),
    ({"enc_block": "conv"}, "encoder_blocks"),
    ({"embedding_dim": 10**9}, "width"),
    ({"embedding_dim": "wide"}, "width"),
    ({"enc_block": "t" * 60}, "not the released architecture"),
    ({"temporal_depth": 3}, "missing"),
    ({"temporal_depth": 1}, "unknown"),
    ({"heads": 8}, "relative_position_bias_table has"),
]


@pytest.mark.parametrize(("changes", "message"), HYPER_PARAMETERS, ids=[message for _, message in HYPER_PARAMETERS])
def test_hyper_parameters_that_the_network_cannot_follow_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    read_in_process(monkeypatch)
    path = checkpoint(tmp_path / "released.ckpt", hyper_parameters={"args": arguments(**changes)})
    _refused(path, tmp_path / "omni", message)


def test_without_hyper_parameters_the_released_sizes_are_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in_process(monkeypatch)
    path = checkpoint(tmp_path / "released.ckpt", hyper_parameters={})
    _refused(path, tmp_path / "omni", r"has \(48,\), expected \(192,\)")


def test_files_of_other_kinds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_process(monkeypatch)
    good = checkpoint(tmp_path / "good.ckpt").read_bytes()
    path = tmp_path / "bad.ckpt"
    for data in (b"", b"no checkpoint", good[: len(good) // 2], good[:-40], b"\x80\x02}q\x00."):
        path.write_bytes(data)
        _refused(path, tmp_path / "omni", "not a torch checkpoint, or truncated|damaged|no dictionary")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    _refused(path, tmp_path / "omni", "not a torch checkpoint")
    torch.save([1, 2], path)
    _refused(path, tmp_path / "omni", "no dictionary of tensors")
    torch.save({"state_dict": {"encoder.x": 3}}, path)
    _refused(path, tmp_path / "omni", "no dictionary of tensors")
    torch.save({"state_dict": {}}, path)
    _refused(path, tmp_path / "omni", "no dictionary of tensors")
    torch.save({"state_dict": {"loss.a": torch.ones(1)}}, path)
    _refused(path, tmp_path / "omni", "missing")
    _refused(tmp_path / "none.ckpt", tmp_path / "omni", "no such file")
    with pytest.raises(CheckpointError, match="SHA-256 is"):
        import_released(tmp_path / "good.ckpt", tmp_path / "omni", expected_sha256="0" * 64)


def test_an_autoencoder_that_is_there_is_not_overwritten(imported: Path) -> None:
    before = (imported / "out" / "omni" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        import_released(imported / "released.ckpt", imported / "out" / "omni")
    with pytest.raises(ValueError, match="exists already"):
        import_released(imported / "released.ckpt", imported / "released.ckpt")
    assert (imported / "out" / "omni" / "config.json").read_bytes() == before


def _refused(path: Path, out: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        import_released(path, out)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert len(str(raised.value)) < 2000 and not out.exists()
