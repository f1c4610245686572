"""Claims: `magi vae check` measures, says and writes; what it wrote is what training loads; mistakes are one line."""

import json
from pathlib import Path

import pytest
import torch

from magi.cli.main import main
from magi.config import DataConfig, VaeConfig
from magi.data.clips import ClipDataset
from magi.data.index.index import open_index
from magi.vae.adapters import load_vae
from magi.vae.omnitokenizer import import_weights
from magi.vae.omnitokenizer.adapter import OmniVae
from magi.vae.omnitokenizer.import_weights import ImportedOmni
from magi.vae.omnitokenizer.shape import OmniShape
from tests.fakes.tiny_vaes import tiny_vae


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "videos"
    assert main(["data", "digits", str(folder), "--clips", "4", "--size", "32", "--frames", "24"]) == 0
    return folder


def check(vae: object, videos: Path, *more: object) -> int:
    words = ["vae", "check", vae, videos, "--clips", 3, "--frames", 9, "--height", 32, "--width", 32, "--device", "cpu"]
    return main([*map(str, words), *map(str, more)])


@pytest.mark.parametrize("name", ["cosmos", "ltx", "sd"])
def test_the_report_says_what_training_will_whiten_by(
    name: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_vae(name).network.save_pretrained(tmp_path / "vae")
    assert check(f"{name}:{tmp_path / 'vae'}", videos, "--report", tmp_path / "report" / "check.json") == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "check.json").read_text(encoding="utf-8"))
    vae = load_vae(VaeConfig.model_validate({"name": name, "weights": str(tmp_path / "vae")}))
    assert vae.id == report["vae"] and f"autoencoder  {vae.id}" in said
    assert said.count("\n") < 15 and "PSNR" in said and "SSIM" in said and "frames/s" in said and "MB" in said
    assert f"{vae.channels - 1:>3}: {report['latent_mean'][-1]:+.4f} {report['latent_std'][-1]:.4f}" in said
    assert report["frames"] == 27 and len(report["latent_std"]) == vae.channels
    if name == "sd":
        assert report["leak"] is None and "streams" in said
    elif name == "cosmos":
        assert report["leak"]["encoder"] < 1e-3 and "encoder      causal" in said and "decoder      streams" in said
    else:
        assert report["leak"]["encoder"] < 1e-3 and "decodes a clip as a whole" in said
    data = DataConfig(root=str(videos), frames=9, height=32, width=32)
    clips = ClipDataset(open_index(data), data, seed=0)
    found = vae.measure((clips[sample].video_THWC for sample in range(3)), "the same clips")
    assert report["latent_mean"] == pytest.approx(found.mean, abs=1e-5)
    assert report["latent_std"] == pytest.approx(found.std, rel=1e-4)
    assert not (tmp_path / "vae" / "normalization.json").exists(), "looking at an autoencoder changes nothing"


def test_a_leaky_autoencoder_is_called_leaky_and_keeps_its_normalisation(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = OmniShape(channels=4, width=16, heads=2, head_width=8, window=2, encoder_blocks="tw", temporal_depth=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        OmniVae(shape).save(tmp_path)
    assert check(f"omni:{tmp_path}", videos) == 0
    said = capsys.readouterr().out
    assert "encoder      LEAKS: latents 1..2 of frames 1..5" in said and "context is encoded alone" in said
    assert load_vae(VaeConfig(name="omni", weights=str(tmp_path))).id in said


def test_the_adapters_that_need_no_normalisation_are_only_measured(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("pixel:4", videos) == 0
    said = capsys.readouterr().out
    assert "all 27 frames are exact" in said and "SSIM         1.0000" in said and "written" not in said


MISTAKES = [
    ("nowhere {videos}", 2, "nowhere: no such folder; expected one of an autoencoder"),
    ("sd {videos}", 2, "sd: name the weights too"),
    ("pixel nowhere", 2, "nowhere: no such folder"),
    ("pixel {videos} --clips 0", 2, "--clips 0: expected 1 or more"),
    ("pixel {videos} --seed -1", 2, "--seed -1"),
    ("pixel {videos} --frames 25", 3, "every video is too short"),
    ("pixel {videos} --interval-min 3 --interval-max 2", 2, "interval_max 2 is below"),
    ("cosmos:{cosmos} {videos} --frames 16", 2, "16 frames: this autoencoder takes 1 + 4 k frames; use 13 or 17"),
    (
        "cosmos:{cosmos} {videos} --height 30",
        2,
        "height 30 x width 32: both must be divisible by the autoencoder's stride 8",
    ),
    ("ltx:{cosmos} {videos}", 5, "config of AutoencoderKLCosmos, not of AutoencoderKLLTXVideo; use --vae.name cosmos"),
    ("cosmos:owner/name {videos}", 2, "owner/name: no such folder, and the hub did not provide it"),
    ("small:{cosmos} {videos}", 5, "config.json: not a config that `magi train-vae` writes"),
]


@pytest.mark.parametrize(("words", "code", "said"), MISTAKES, ids=[words for words, _, _ in MISTAKES])
def test_a_mistake_is_one_line(
    words: str, code: int, said: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_vae("cosmos").network.save_pretrained(tmp_path)
    vae, data, *more = words.format(videos=videos, cosmos=tmp_path).split()
    capsys.readouterr()
    assert check(vae, Path(data), *more) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("indexing", "checking"))]
    assert len(errors) == 1 and said in errors[0], errors
    assert not (tmp_path / "normalization.json").exists()


def test_import_hands_everything_on_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vae", "import", str(tmp_path / "none.ckpt"), str(tmp_path / "out")]) == 2
    assert "none.ckpt: no such file" in capsys.readouterr().err
    asked = []

    def imported(checkpoint: Path, out: Path, sha256: str) -> ImportedOmni:
        asked.append((checkpoint, out, sha256))
        return ImportedOmni(out, "omni-0123", "abc", 7, 1234567, ("a note",))

    monkeypatch.setattr(import_weights, "import_released", imported)
    (tmp_path / "some_vae.ckpt").write_bytes(b"PK")
    assert main(["vae", "import", str(tmp_path / "some_vae.ckpt"), str(tmp_path / "out"), "--sha256", "abc"]) == 0
    assert asked == [(tmp_path / "some_vae.ckpt", tmp_path / "out", "abc")]
    said = capsys.readouterr().out
    for part in ("omni-0123, 1,234,567 parameters in 7 tensors", "abc", "a note", f"vae check omni:{tmp_path / 'out'}"):
        assert part in said
