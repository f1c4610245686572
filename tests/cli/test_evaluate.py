"""``magi evaluate`` by protocols: it runs, says what it made, ranks, and every mistake is one line and an exit code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from magi.cli import evaluate
from magi.cli.main import main
from magi.config import Config, DataConfig, ModelConfig, SamplingConfig
from magi.data.moving_digits import write_digits
from magi.evaluation.networks import load, published_files
from magi.evaluation.networks.published_files import WEIGHT_KINDS
from magi.evaluation.protocol.protocols import protocol
from magi.model.magi import Magi
from magi.sampling.pipeline import MagiPipeline
from magi.vae.contract import latent_shape
from magi.vae.pixel import PixelVae
from tests.fakes.caption_reader import Illustrator, LightMeter
from tests.fakes.look_alikes import write_look_alikes


def run(command: str, *more: object) -> int:
    return main([*command.split(), *map(str, more)])


def untrained(folder: Path, size: int) -> Path:
    """An export of a model with fresh weights for clips of 16 frames."""
    vae, data = PixelVae(16), DataConfig(frames=16, height=size, width=size)
    shape = {"width": 16, "blocks": 1, "heads": 2, "head_width": 16, "head_blocks": 1, "frames": 16}
    config = Config(
        data=data,
        vae={"name": "pixel", "pixel_stride": 16},  # type: ignore[arg-type]
        model=ModelConfig(**shape, class_tokens=1),  # type: ignore[arg-type]
        sampling=SamplingConfig(iterations=1, steps=2, fast_steps=1),
    )
    model = Magi(config.model, latent_shape(vae, data), torch.Generator().manual_seed(0))
    MagiPipeline(model, vae, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.protocol.score._RESAMPLES", 8)
        patch.setattr("magi.evaluation.moving_digits.protocol.CLASSIFIER_CLIPS", 50)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "videos"
    write_digits(folder, 8, size=64, seed=9, frames=32)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("model") / "export", 64)


@pytest.fixture(scope="module")
def evaluated(digits: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    assert run("evaluate digits3d", f"fresh={model}", digits, out, "--count", 4, "--singular") == 0
    return out


def test_digits3d_scores_a_model_and_the_floor(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((evaluated / "result.json").read_text())
    assert result["score_name"] == "fvd[digits3d; count=4; singular=True]"
    scores = result["frechet"]
    assert scores["models"]["fresh"]["score"]["value"] > scores["real"]["floor"]["value"] > 0
    assert set(scores["real"]["motion_controls"]) == {"frames_shuffled", "first_frame_frozen", "interval_doubled"}
    page = (evaluated / "report.html").read_text()
    assert "fvd[digits3d; count=4" in page and "data:image/png;base64," in page and "https://" not in page
    for file in ("contact_sheet.png", "curves.png", "comparison.mp4", "comparison.gif", "clips.csv", "clips.json"):
        assert (evaluated / file).stat().st_size > 0


def test_second_call_keeps_everything_and_prints_the_score(
    evaluated: Path, digits: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / "result.json").read_bytes()
    assert run("evaluate digits3d", f"fresh={model}", digits, evaluated, "--count", 4, "--singular") == 0
    printed = capsys.readouterr().out
    assert (evaluated / "result.json").read_bytes() == before
    assert printed.startswith("fvd[digits3d; count=4; singular=True] by digits3d\n")
    for text in ("fresh, change between frames over real", "real against real (the floor)"):
        assert text in printed
    assert str(evaluated / "report.html") in printed


def test_digits_measures_the_ground_truth_at_every_speed_with_the_options_given(
    digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"fresh={model}", digits, tmp_path, "--speeds", "full", "fast", "--seed", 3]
    words += ["--frames", 10, "--context", 2, "--count", 3, "--batch", 2]
    assert run("evaluate digits", *words) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["ground_truth"]["series"]) == ["real", "vae", "fresh", "fresh-fast"]
    assert result["models"]["fresh"]["sampling"] != result["models"]["fresh-fast"]["sampling"]
    chosen = result["card"]["protocol"]
    assert (chosen["frames"], chosen["context_frames"], chosen["count"], result["card"]["seed"]) == (10, 2, 3, 3)
    assert list(result["ground_truth"]["series"]["fresh"]["ranges"]) == ["3-10"]
    printed = capsys.readouterr().out
    assert "fresh-fast, frames 3-10" in printed and "class_accuracy" in printed
    for name in ("report.html", "contact_sheet.png", "comparison.mp4", "comparison.gif", "result.json"):
        assert (tmp_path / name).is_file() and str(tmp_path / name) in printed, name
    assert run("evaluate digits", *words, "--labels") == 2  # this model has no classes
    assert "digits tells the class, but this model has none" in capsys.readouterr().err


def test_workers_share_a_protocol_and_a_table_is_used_again(
    evaluated: Path, digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits3d-f1", f"fresh={model}", digits, tmp_path, "--count", 4, "--singular", "--size", 32]
    assert run("evaluate", *words, "--worker", "1/2") == 0  # all samples lie in the one shard of worker 0
    assert "last worker to finish" in capsys.readouterr().out
    assert run("evaluate", *words, "--worker", "0/2", "--clips", evaluated / "clips.csv") == 0
    assert (tmp_path / "clips.csv").read_bytes() == (evaluated / "clips.csv").read_bytes()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["score_name"] == "fvd[digits3d; count=4; read_size=32; score_size=32; singular=True]"
    assert result["card"]["protocol"]["read_size"] == result["card"]["protocol"]["score_size"] == 32


@pytest.mark.parametrize("annotated", [True, False])
def test_videos_are_those_of_the_protocol_s_split_as_annotated(
    annotated: bool, digits: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without annotations the folder is taken as the split."""
    asked: list[DataConfig] = []

    def stop(config: DataConfig, *_: object) -> None:
        asked.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("magi.data.index.index.open_index", stop)
    words = ["--annotations", "lists"] if annotated else []
    given = ["ucf101-128-class-10k", model, digits, tmp_path, "--synthetic", "--max-bad-fraction", 0.25, *words]
    assert run("evaluate", *given) == 2
    (config,) = asked
    expected = ("lists", "trainlist01") if annotated else ("", "")
    assert (config.annotations, config.split) == expected
    assert (config.root, config.max_bad_fraction) == (str(digits), 0.25)


@pytest.mark.parametrize(
    ("imported", "synthetic", "expected"),
    [
        ({"i3d"}, False, []),
        ({"i3d", "inception", "alexnet", "lpips-vgg"}, False, ["inception"]),
        ({"i3d", "alexnet", "lpips-alex", "vgg16"}, False, ["alex"]),
        (set(WEIGHT_KINDS), False, ["inception", "alex", "vgg"]),
        (set(WEIGHT_KINDS), True, []),
    ],
)
def test_a_score_stands_beside_what_weights_were_imported_for(
    imported: set[str], synthetic: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded:
        def __init__(self, *given: object) -> None:
            self.given = given

        def to(self, device: object) -> "Loaded":
            return self

    monkeypatch.setattr(published_files, "has_weights", lambda kind: kind in imported)
    for name in ("load_i3d", "synthetic_i3d", "load_inception", "load_lpips"):
        monkeypatch.setattr(load, name, lambda *given, name=name: Loaded(name, *given))
    metrics: Any = evaluate._metrics(protocol("ucf101-128-class-2048"), synthetic, "cpu")
    assert metrics.network.given == ("synthetic_i3d" if synthetic else "load_i3d", "tats", 1e-5)
    beside = ["inception"] if metrics.images is not None else []
    assert [*beside, *(distance.given[1] for distance in metrics.distances)] == expected
    metrics = evaluate._metrics(protocol("k600-64-f5-50k-grid"), synthetic, "cpu")
    assert metrics.network.given[1:] == ("magvit_train", 1e-3) and metrics.context_frames == 5


def test_compare_ranks_equal_cards_and_refuses_others(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate compare", evaluated, evaluated / "result.json") == 0
    assert "fvd[digits3d" in capsys.readouterr().out
    other = json.loads((evaluated / "result.json").read_text())
    other["card"]["versions"]["torch"] = "1.0"
    from magi.evaluation.protocol.card import ProtocolCard

    other["card_sha256"] = ProtocolCard(other["card"]).hash
    (tmp_path / "result.json").write_text(json.dumps(other))
    assert run("evaluate compare", evaluated, tmp_path) == 2
    assert "differ in versions.torch" in capsys.readouterr().err
    assert run("evaluate compare", evaluated, tmp_path, "--ignore", "versions.torch") == 0
    assert "ignored as asked" in capsys.readouterr().out


def test_protocols_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate protocols") == 0
    assert "ucf101-256-2048-s3 " in capsys.readouterr().out
    assert run("evaluate protocols ucf101-256-2048-s3") == 0
    assert "interval: 3\n" in capsys.readouterr().out
    assert run("evaluate") == 0
    assert "evaluate compare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("evaluate ucf101-256-2048 {model} {videos} {out}", 2, "did you mean 'ucf101-256-2048-s"),
        ("evaluate ucf101-256-2048-s3 {model} {videos} {out}", 5, "i3d: weights not imported"),
        ("evaluate ucf101-256-2048-s3 {model} nowhere {out} --synthetic", 2, "nowhere: no such folder"),
        ("evaluate ucf101-256-2048-s3 {model} {videos} {out} --synthetic", 2, "needs 4096"),
        ("evaluate ucf101-256-2048-s3 {model} {videos} {out} --synthetic --count 2 --singular", 2, "scores at 256"),
        (
            "evaluate ucf101-256-2048-s3 {model} {videos} {out} --synthetic --count 2 --size 64",
            2,
            "2 clips are no more than the 400 dimensions",
        ),
        ("evaluate k600-64-f5-50k {model} {videos} {out} --worker 2/2", 2, "--worker 2/2: expected i/N"),
        ("evaluate digits3d a={model} {videos} {out}", 2, "digits3d needs 512"),
        ("evaluate digits3d a={model} {videos} {out} --batch 0", 2, "--batch 0: expected"),
        ("evaluate digits3d {model},a={model} {videos} {out}", 2, "expected NAME=MODEL"),
        ("evaluate digits3d a={model},a={model} {videos} {out}", 2, "the name 'a' is given twice"),
        ("evaluate digits {model} {videos} {out} --count 2 --frames 8 --context 0", 2, "at least 1 frame of context"),
        ("evaluate digits {model} {videos} {out} --count 2", 2, "104 frames, digits needs 2"),
        ("evaluate compare {out}", 2, "at least two results"),
        ("evaluate compare {out} {videos}", 2, "no such result"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    command: str,
    code: int,
    message: str,
    model: Path,
    look_alikes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAGI_CACHE", str(tmp_path / "cache"))
    places = {"model": model, "videos": look_alikes, "out": tmp_path / "out"}
    words = [word.format(**places) for word in command.split()]
    assert main(words) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("magi: error:")]
    assert len(errors) == 1 and message in errors[0], errors


@pytest.fixture(scope="module")
def look_alikes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_look_alikes(tmp_path_factory.mktemp("look-alikes"), 6)


def test_text_writes_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MagiPipeline, "from_pretrained", lambda source, device: Illustrator())
    assert run("evaluate text drawn=anything", tmp_path, "--prompts", 4, "--guidance", 2, "--worker", "1/2") == 0
    assert "this worker's samples are finished" in capsys.readouterr().out
    assert run("evaluate text drawn=anything", tmp_path, "--prompts", 4, "--guidance", 2) == 0
    out = capsys.readouterr().out
    assert "drawn: 6 of 6 targets met" in out
    for file in ("prompts.png", "report.html", "result.json"):
        assert (tmp_path / file).is_file() and str(tmp_path / file) in out


def test_text_adds_a_clip_score_by_the_model_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MagiPipeline, "from_pretrained", lambda source, device: Illustrator())
    asked: list[str] = []
    monkeypatch.setattr(
        "magi.evaluation.text.clip_score.ClipScore.load", lambda source, device: asked.append(source) or LightMeter()
    )
    assert run("evaluate text drawn=anything", tmp_path, "--prompts", 4, "--clip", "a-folder") == 0
    assert asked == ["a-folder"]
    assert "CLIP score, drawn: 100.00 (100.00 to 100.00), 100.00 (100.00 to 100.00)" in capsys.readouterr().out


def test_text_refuses_a_model_without_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate text demo", tmp_path) == 2
    assert "model: this model has no text; its prompts cannot be measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
