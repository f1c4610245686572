"""What stands before a run: whole configs without data or weights, plans, warnings."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import magi.cli.assemble as assemble
import magi.cli.train as train
from magi.cli.main import main
from magi.config import LatentShape
from magi.config_files import parse_config
from magi.presets import PAPER_SIZE, preset, resized
from magi.training.cost import GIB, GPUS, changed, plan
from magi.training.parallelize import Distributed
from runs import plans
from tests.fakes.training_runs import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_dry_run_prints_the_whole_config_without_data_or_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (assemble, train):
        monkeypatch.setattr(module, "autoencoder", lambda config: pytest.fail("weights were looked for"))
    assert main(["train", name, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert parse_config(yaml.safe_load(out), name) == preset(name)
    assert re.search(r"# model     8\d\d,\d{3},\d{3} parameters, \d+ frames of", out)
    assert f"# training  {preset(name).training.steps} steps of {preset(name).training.batch} clips" in out
    assert f"# not ready to train: data.root {preset(name).data.root}: no such folder" in out


@pytest.mark.parametrize("words", [["--size", "small"], ["--size=small"]])
def test_size_comes_before_the_fields_that_it_sets(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "k600-omni", *words, "--dry-run", "--model.blocks", "3"]) == 0
    config = parse_config(yaml.safe_load(capsys.readouterr().out), "dry run")
    assert config.model == resized(preset("k600-omni"), "small").model.model_copy(update={"blocks": 3})


def test_parallelism_has_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--training.parallel", "fsdp", "--training.activation-checkpointing", "--training.compile"]
    assert main(["train", "ucf101-sd", "--dry-run", *words]) == 0
    training = parse_config(yaml.safe_load(capsys.readouterr().out), "dry run").training
    assert (training.parallel, training.activation_checkpointing, training.compile) == ("fsdp", True, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train k600-omni --size huge --dry-run", "unknown size 'huge'; there are: nano, tiny, small, base, large"),
        ("train k600-omni --size smal --dry-run", "did you mean 'small'?"),
        ("train k600-omni --training.parallel fsdq --dry-run", "--training.parallel"),
        ("train digits --run x --sampling.iterations 99", "sampling.iterations 99: at most 16, the tokens of a frame"),
        ("train digits --run x --sampling.steps 5000", "sampling.steps: expected 1..1000, got 5000"),
        (
            "train digits --run x --sampling.first-frame-steps 5000",
            "sampling.first_frame_steps 5000: at most 1000, model.diff",
        ),
        ("train digits --run x --sampling.first-timestep 1000", "sampling.first_timestep 1000"),
        ("train digits --run x --model.diffusion-steps 20", "sampling.steps: expected 1..20, got 50"),
        ("train digits --run x --sampling.noise-level 6", "sampling.noise_level 6: at most 5, model.noise_levels"),
        ("train digits --run x --sampling.context-frames 16", "set --sampling.context-frames 15"),
        ("inspect cost", "name a preset or a config file"),
        ("inspect cost k600", "unknown preset 'k600'"),
        ("inspect cost k600-omni --gpu h300", "unknown --gpu 'h300'; there are: h200, h100"),
        ("inspect cost k600-omni --gpus 0", "--gpus 0: expected 1..256"),
        ("inspect cost k600-omni --gpus 3 --parallel fsdp", "fsdp needs a divisor of training.batch 256"),
        ("inspect cost k600-omni --utilisation 0", "--utilisation 0.0: expected a share"),
        ("inspect cost k600-omni --parallel zero", "command line: training.parallel"),
        ("inspect cost k600-omni --micro-batch -1", "command line: training.micro_batch"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_frames_that_the_autoencoder_cannot_take_are_told_by_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "k600-omni", "--dry-run", "--data.frames", "16"]) == 0
    assert (
        "# not ready to train: 16 frames: this autoencoder takes 1 + 4 k frames; use 13 or 17"
        in capsys.readouterr().out
    )


def test_inspect_cost_tells_the_plan_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "cost", "k600-omni", "--gpu", "h200", "--gpus", "8"]) == 0
    out = capsys.readouterr().out
    for word in (
        "TFLOP forward and backward",
        "weights",
        "gradients",
        "optimizer",
        "EMA",
        "activations",
        "steps a day",
    ):
        assert word in out, word
    assert "230,052 steps" in out and "GPU-days" in out and "GB of latents" in out and out.endswith("fits\n")
    assert main(["inspect", "cost", "k600-omni", "--gpu", "4090", "--gpus", "8"]) == 0
    assert re.search(r"warning: will not fit: .* it fits with --training\.micro-batch 1\n$", capsys.readouterr().out)
    assert main(["inspect", "cost", "k600-omni", "--gpu", "4090", "--gpus", "8", "--micro-batch", "1"]) == 0
    assert capsys.readouterr().out.endswith("fits\n")
    small = "inspect cost k600-omni --gpu 4090 --size tiny --parallel fsdp --activation-checkpointing"
    assert main(small.split()) == 0
    assert "fsdp, activation checkpointing" in capsys.readouterr().out


def test_the_states_of_captions_have_a_line_of_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "cost", "text"]) == 0
    out = capsys.readouterr().out
    assert "879,765,888 parameters" in out and out.endswith("fits\n")
    # 1,019,957 captions of 128 x 4096 numbers of two bytes.
    assert "1,070 GB at most of captions: 128 tokens of 4096 numbers in float16" in out


def test_inspect_model_counts_every_parameter_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Section 3's large model, by part."""
    assert main(["inspect", "model", "large"]) == 0
    rows = re.findall(r"^(\D+?) +([\d,]+)$", capsys.readouterr().out, re.M)
    counts = {name: int(number.replace(",", "")) for name, number in rows}
    total = counts.pop("parameters")
    assert total == sum(counts.values()) and 800e6 < total < 860e6
    assert counts["spatial MLP"] == 20 * (2 * 1280 * 5120 + 1280 + 5120)
    assert counts["diffusion head"] == 20_524_064


def test_the_document_of_plans_is_what_the_command_writes() -> None:
    assert plans.document() == (ROOT / "docs/plans.md").read_text(), "python runs/plans.py"


def test_the_plan_is_near_what_was_measured() -> None:
    """Memory within 10 %, above it rather than below; with recomputation, where little is left, within 25 %."""
    for line in (ROOT / "results/measured_steps.jsonl").read_text().splitlines():
        one = json.loads(line)
        again = one["activation_checkpointing"]
        config = changed(preset(one["preset"]), micro_batch=one["micro_batch"], activation_checkpointing=again)
        made = plan(config, assemble.planned_latent(config), GPUS["h200"], 1)
        assert 1.0 <= made.memory.peak / GIB / one["peak_gib"] < (1.25 if again else 1.1), one


@pytest.mark.parametrize("text", ["", ", text_encoder: bytes", ", text_encoder: frozen, text_width: 6"])
def test_measuring_beside_the_plan(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU, with a model of a few weights: real steps are taken and recorded."""
    (tmp_path / "tiny.yaml").write_text(
        "vae: {name: pixel, pixel_stride: 4}\ndata: {frames: 2, height: 16, width: 16, workers: 0}\n"
        "model: {width: 16, blocks: 1, heads: 2, head_width: 16, head_blocks: 1, frames: 2"
        f"{text}}}\n"
        "training: {batch: 2, precision: fp32}\nsampling: {iterations: 2}\n"
    )
    record = tmp_path / "steps.jsonl"
    words = ["inspect", "cost", str(tmp_path / "tiny.yaml"), "--gpus", "1", "--measure", "--record", str(record)]
    assert main(words) == 0
    assert re.search(r"measured     [\d.]+ s a step of 2 clips", capsys.readouterr().out)
    line = json.loads(record.read_text())
    assert line["micro_batch"] == 2 and line["seconds"] > 0 and line["torch"] == torch.__version__


def test_training_on_a_gpu_warns_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory that the driver tells; a GPU that is large enough is passed in silence, and so is a CPU."""
    latent, config = LatentShape(frames=3, channels=2, height=4, width=4), tiny_config()
    memory = [2**20]

    class Found:
        name = "a small GPU"

        @property
        def total_memory(self) -> int:
            return memory[0]

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Found())
    gpu = Distributed(0, 1, torch.device("cuda", 0))
    with pytest.warns(UserWarning, match=r"will not fit: about .* on a small GPU") as told:
        assemble.check_memory(config, latent, gpu)
    assert len(told) == 1
    memory[0] = 2**34
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assemble.check_memory(config, latent, gpu)
        memory[0] = 1
        assemble.check_memory(config, latent, Distributed(0, 1, torch.device("cpu")))
        assemble.check_memory(config, latent, Distributed(1, 2, torch.device("cuda", 1)))
