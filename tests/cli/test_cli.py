"""Every verb runs, on tiny data; every mistake is one line and an exit code."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

import magi
from magi.cli import main as cli
from magi.cli.assemble import autoencoder, build_model
from magi.cli.data import parse_worker
from magi.cli.evaluate import model_sources
from magi.cli.main import VERBS, main
from magi.cli.sample import read_context
from magi.config import DataConfig
from magi.config_files import load_config, parse_config
from magi.errors import CheckpointError, DataError, NumericsError, StoppedCleanly

SMALLEST = (
    "--vae.name pixel --vae.weights= --model.width 16 --model.blocks 1 --model.heads 2 --model.head-width 16 "
    "--model.head-blocks 1 --model.frames 4 --data.frames 4 --data.height 32 --data.width 32 --data.workers 0 "
    "--training.batch 2 --training.log-every 1 --sampling.iterations 2 --sampling.steps 4 --sampling.window-keep 2"
)


def run(command: str, *more: object) -> int:
    return main([*command.split(), *map(str, more)])


def train_words(data: Path, folder: Path, *more: str) -> list[str]:
    return [
        "train",
        "digits",
        "--run",
        str(folder),
        "--data.root",
        str(data),
        *SMALLEST.split(),
        "--device",
        "cpu",
        *more,
    ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "videos"
    assert run("data digits", folder, "--clips", 10, "--size", 32, "--frames", 12) == 0
    assert run("data index", folder) == 0
    return folder


@pytest.fixture(scope="module")
def model(videos: Path) -> Path:
    """A run of two steps."""
    folder = videos.parent / "run"
    assert main(train_words(videos, folder, "--training.steps", "2")) == 0
    return folder


# Every verb runs


def test_data_digits_and_index(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(videos.glob("*/*.mp4"))) == 10
    assert run("data digits", videos, "--clips", 10, "--size", 32, "--frames", 12) == 0
    assert run("data index", videos) == 0
    out = capsys.readouterr().out
    assert "0 videos written, 10 were there" in out and "10 videos in 10 classes, 0 skipped" in out


def test_index_names_what_it_skips(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(videos / "0", tmp_path / "0")
    (tmp_path / "0" / "broken\n.mp4").write_text("not a video")
    assert run("data index", tmp_path) == DataError.exit_code
    err = capsys.readouterr().err
    assert err.count("magi: error:") == 1 and "1 of 2 videos" in err
    assert run("data index", tmp_path, "--max-bad-fraction", 0.5) == 0
    assert "skipped '0/broken\\n.mp4': " in capsys.readouterr().out


def test_train_writes_a_whole_run(model: Path) -> None:
    for name in ("config.yaml", "classes.json", "metrics.jsonl", "loss.png", "checkpoints/latest"):
        assert (model / name).is_file(), name
    assert list((model / "samples").glob("step-*.png"))
    assert json.loads((model / "classes.json").read_text()) == list("0123456789")
    config = load_config(model / "config.yaml")
    assert (config.model.width, config.training.steps, config.training.learning_rate) == (16, 2, 1e-3)


def test_train_again_resumes_and_trains_on(videos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = videos.parent / "longer"
    shutil.copytree(model, longer)
    assert main(train_words(videos, longer, "--training.steps", "2")) == 0
    assert main(train_words(videos, longer, "--training.steps", "3")) == 0
    assert [json.loads(line)["step"] for line in (longer / "metrics.jsonl").open()] == [1, 2, 3]
    assert main(train_words(videos, longer, "--training.steps", "3", "--training.batch", "4")) == 5
    assert "training.batch was 2, now 4" in capsys.readouterr().err


def test_train_from_the_config_file_of_a_run(videos: Path, model: Path) -> None:
    again = ["train", str(model / "config.yaml"), "--run", str(videos.parent / "copy"), "--training.steps", "1"]
    assert main([*again, "--device", "cpu"]) == 0
    assert load_config(videos.parent / "copy" / "config.yaml").model == load_config(model / "config.yaml").model


def test_fresh_weights_depend_on_the_seed_alone(model: Path) -> None:
    """Every process of a run starts from the same weights, and the same command from the same run."""
    config = load_config(model / "config.yaml")
    other = config.model_copy(update={"training": config.training.model_copy(update={"seed": 1})})
    vae, latent = autoencoder(config)
    first, again, different = (build_model(one, latent, vae).embed_token.weight for one in (config, config, other))
    assert first.equal(again) and not first.equal(different)


def test_encode_and_train_on_latents(videos: Path, model: Path) -> None:
    out = videos.parent / "latents"
    words = ["--vae", "pixel", "--height", 32, "--width", 32, "--device", "cpu", "--worker", "0/1"]
    assert run("encode", videos, out, *words) == 0
    folder = videos.parent / "latent-run"
    assert main(train_words(out, folder, "--training.steps", "1")) == 0
    raw, latent = (json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (model, folder))
    assert latent["loss"] == pytest.approx(raw["loss"], rel=1e-2)  # the same clips; latents are float16 on disk


def test_train_vae_and_use_it(videos: Path) -> None:
    out = videos.parent / "vae"
    words = ["--height", 32, "--width", 32, "--batch", 2, "--workers", 0, "--device", "cpu"]
    assert run("train-vae", videos, out, "--steps", 2, *words) == 0
    assert (out / "reconstructions.png").is_file()
    command = train_words(videos, videos.parent / "vae-run", "--training.steps", "1", "--vae.name", "small")
    assert main([*command, "--vae.weights", str(out)]) == 0
    assert (videos.parent / "vae-run" / "vae" / "config.json").is_file()


def test_sample_with_and_without_context(videos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = videos.parent / "samples"
    context = next((videos / "3").glob("*.mp4"))
    asked = ["--context", context, "--context-frames", 2, "--interval", 2, "--label", "3", "--longer", "window"]
    assert run("sample", model, out, "--frames", 6, "--count", 3, "--batch", 2, "--seed", 5, *asked) == 0
    for name in ("video_00005.mp4", "video_00007.gif", "contact_sheet.png"):
        assert (out / name).is_file(), name
    assert "first frame after" in capsys.readouterr().out
    more = ["--iterations", 1, "--steps", 2, "--temperature", 0.9, "--guidance", 2, "--label", 1, "--noise-level", 2]
    assert run("sample", model, videos.parent / "samples2", "--frames", 2, *more) == 0


def test_context_is_every_nth_frame(videos: Path) -> None:
    path, size = next((videos / "3").glob("*.mp4")), DataConfig(height=32, width=32)
    whole, second = read_context(path, 0, 1, size), read_context(path, 4, 3, size)
    assert whole.video_THWC.shape == (12, 32, 32, 3) and whole.fps == 25
    assert (second.video_THWC == whole.video_THWC[[0, 3, 6, 9]]).all() and second.fps == pytest.approx(25 / 3)
    assert read_context(path, 0, 5, size).video_THWC.shape[0] == 3
    at_10 = read_context(path, 0, 1, size.model_copy(update={"fps": 10}))
    assert (at_10.video_THWC == whole.video_THWC[[0, 2, 5, 7, 10]]).all() and at_10.fps == 10
    assert read_context(path, 0, 11, size.model_copy(update={"fps": 10})).fps == pytest.approx(10 / 11)
    assert read_context(path, 2, 1, DataConfig(height=16, width=24)).video_THWC.shape == (2, 16, 24, 3)


def test_video_k_has_the_seed_k(videos: Path, model: Path) -> None:
    first, second = videos.parent / "three", videos.parent / "one"
    assert run("sample", model, first, "--frames", 3, "--count", 3, "--batch", 2, "--seed", 5) == 0
    assert run("sample", model, second, "--frames", 3, "--seed", 7) == 0
    size = DataConfig(height=32, width=32)
    fifth, seventh = (read_context(first / f"video_0000{k}.mp4", 0, 1, size).video_THWC / 1.0 for k in (5, 7))
    again = read_context(second / "video_00007.mp4", 0, 1, size).video_THWC / 1.0
    assert abs(seventh - again).mean() < 1 < abs(fifth - again).mean()


def test_export_makes_the_same_videos(videos: Path, model: Path) -> None:
    out = videos.parent / "export"
    assert run("export", model, out) == 0
    assert {"config.yaml", "model.safetensors", "README.md", "classes.json"} <= {file.name for file in out.iterdir()}
    for source, folder in ((model, "from-run"), (out, "from-export")):
        assert run("sample", source, videos.parent / folder, "--frames", 3) == 0
    first, second = ((videos.parent / name / "video_00000.mp4").read_bytes() for name in ("from-run", "from-export"))
    assert first == second


def test_inspect(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect mask digits --frames 3") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [  # the paper's figure without the last observation frame, which no masked frame attends to
        ["o1", "o2", "m1", "m2", "m3"],
        ["o1", "1", "0", "0", "0", "0"],
        ["o2", "1", "1", "0", "0", "0"],
        ["m1", "0", "0", "1", "0", "0"],
        ["m2", "1", "0", "0", "1", "0"],
        ["m3", "1", "1", "0", "0", "1"],
    ]
    assert run("inspect model large") == 0
    assert "20 blocks, width 1280, 16 heads" in capsys.readouterr().out
    for name in (model, "demo", "digits"):
        assert run("inspect model", name) == 0
        assert run("inspect mask", name) == 0


def test_dry_run_is_a_config_file(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = train_words(videos, tmp_path / "never", "--training.steps", "7", "--dry-run")
    assert main(words) == 0
    out = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(out)
    assert load_config(tmp_path / "c.yaml").training.steps == 7
    assert "parameters" in out and "10 videos, 10 classes" in out and "7 steps of 2 clips = 14 clips" in out
    assert not (tmp_path / "never").exists()
    assert main(["train", "digits", "--dry-run", "--data.root", "nowhere"]) == 0
    out = capsys.readouterr().out
    assert "# not ready to train: " in out
    assert parse_config(yaml.safe_load(out), "dry run").data.root == "nowhere"


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb.name in out and verb.summary in out for verb in VERBS)
    assert all(f"{error.exit_code} " in out for error in (DataError, NumericsError, CheckpointError, StoppedCleanly))
    assert main(["data"]) == 0
    assert "data index" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_help(verb: cli.Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.name.split(), "--help"]) == 0
    assert f"usage: magi {verb.name}" in capsys.readouterr().out


@pytest.mark.slow
def test_torchrun_trains_as_one_process(videos: Path, model: Path) -> None:
    """Two gloo processes reach the losses of one; torchrun takes ``--run`` for its own, so it is ``--run-dir`` here."""
    folder = videos.parent / "run-of-two"
    words = [*train_words(videos, folder, "--training.steps", "2", "--training.sample-every", "0")]
    words[words.index("--run")] = "--run-dir"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "magi"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (model, folder))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)


# Mistakes


MISTAKES = [
    ("trian digits", 2, "unknown verb 'trian'; did you mean 'magi train'?"),
    ("data dgits x", 2, "unknown verb 'data dgits'; did you mean 'magi data digits'?"),
    ("train", 2, "a preset or a config file comes first"),
    ("train --run x", 2, "a preset or a config file comes first"),
    ("train digit --run x", 2, "unknown preset 'digit'; did you mean 'digits'?"),
    ("train nowhere.yaml --run x", 2, "nowhere.yaml: no such config file"),
    ("train digits", 2, "--run is missing"),
    ("train digits --run x --vae.name pixel --vae.weights= --data.root nowhere", 2, "nowhere: no such folder"),
    ("train digits --run x --training.steps 0", 2, "command line: training.steps: "),
    ("train digits --run x --data.interval-max 30", 2, "data.interval_max 30 exceeds model.interval_vocabulary 25"),
    ("train digits --run x --vae.name pixel --vae.weights= --data.height 60", 2, "divisible by 16 (stride 8"),
    ("train digits --run x --vae.name pixel --vae.weights= --data.frames 8", 2, "set --model.frames 8"),
    ("train digits --run x --vae.weights nowhere", 5, "nowhere"),
    ("data index nowhere", 2, "nowhere: no such folder"),
    ("data index . --max-bad-fraction 2", 2, "--max-bad-fraction 2.0: expected a share"),
    ("data digits x --size 63", 2, "size must be even"),
    ("data digits x --seed -1", 2, "--seed -1: expected 0 or more"),
    ("data world maze x --round-trips --frames 30", 2, "--frames 30: a round trip has a length of its own"),
    ("encode nowhere x --vae pixel", 2, "nowhere: no such folder"),
    ("encode . x --vae pixel --worker 4/4", 2, "--worker 4/4: expected i/N"),
    ("train-vae nowhere x", 2, "nowhere: no such folder"),
    ("train-vae . x --steps 0", 2, "command line: steps: "),
    ("sample nowhere x", 2, "nowhere: no such folder"),
    ("sample demo x --frames 4 --context y.mp4 --context-frames 4", 2, "leaves none of --frames 4 to generate"),
    ("sample demo x --count 0", 2, "--count 0: expected at least 1"),
    ("export nowhere x", 2, "nowhere: no such folder"),
    ("evaluate digits a=fresh,=x . x", 2, "MODEL =x: expected NAME=MODEL"),
    ("inspect model dgits", 2, "unknown preset 'dgits'; did you mean 'digits'?"),
    ("inspect mask --frames -1", 2, "--frames -1: expected at least 1"),
]


@pytest.mark.parametrize(("command", "code", "message"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_mistake_is_one_line(
    command: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("magi: error: ") and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


MODEL_MISTAKES = [
    ("--frames 4 --label 10", 2, "label 10: expected 0..9"),
    ("--frames 4 --label seven", 2, "label 'seven': no such class"),
    ("--frames 4 --interval 26", 2, "interval: expected a whole number in 1..25"),
    ("--frames 4 --noise-level 6", 2, "noise_level: expected a whole number in 1..5"),
    ("--frames 4 --steps 0", 2, "sampling: steps: "),
    ("--frames 4 --iterations 9999", 2, "9999"),
    ("--frames 14 --context CLIP --context-frames 13", 2, "has 12 frames, but 13 context frames"),
    ("--frames 12 --context CLIP --context-frames 0", 2, "leave none to generate"),
    ("--frames 4 --context nowhere.mp4", 2, "nowhere.mp4: no such video file"),
    ("--frames 4 --context TEXT", 3, "not a usable video: "),
]


@pytest.mark.parametrize(("words", "code", "message"), MODEL_MISTAKES, ids=[mistake[0] for mistake in MODEL_MISTAKES])
def test_what_a_model_cannot_do(
    words: str, code: int, message: str, videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    files = {"CLIP": str(next((videos / "3").glob("*.mp4"))), "TEXT": str(tmp_path / "text.mp4")}
    assert run("sample", model, tmp_path / "out", *(files.get(word, word) for word in words.split())) == code
    err = capsys.readouterr().err
    assert message in err and "magi: error: " in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_wrong_classes_and_wrong_checkpoint(videos: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_words(videos, videos.parent / "never", "--model.classes", "3")) == 2
    assert "has 10 class folders (0, 1, 2, 3, 4, ...); set --model.classes 10" in capsys.readouterr().err
    folder = videos.parent / "other-model"
    shutil.copytree(model, folder)
    config = (folder / "config.yaml").read_text().replace("width: 16\n  blocks: 1", "width: 24\n  blocks: 1")
    (folder / "config.yaml").write_text(config)
    assert run("sample", folder, videos.parent / "never", "--frames", 2) == 5
    assert "another architecture" in capsys.readouterr().err


def test_wrong_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--run", "x", "--training.stepz", "3"]) == 2
    assert "--training.steps" in capsys.readouterr().err
    assert main(["train", "digits", "--run", "x", "--training.steps", "many"]) == 2
    assert "--training.steps" in capsys.readouterr().err


OUTCOMES = [
    (ValueError("wrong"), 2, "magi: error: wrong"),
    (DataError("gone"), 3, "magi: error: gone"),
    (NumericsError("nan"), 4, "magi: error: nan"),
    (CheckpointError("cut"), 5, "magi: error: cut"),
    (StoppedCleanly("saved"), 75, "magi: saved"),
    (PermissionError(13, "Permission denied", "f"), 2, "magi: error: f: Permission denied"),
    (KeyboardInterrupt(), 130, "magi: interrupted"),
    (RuntimeError("a\nb"), 1, "magi: error: RuntimeError: a b (add --debug for the traceback)"),
]


@pytest.mark.parametrize(("error", "code", "line"), OUTCOMES, ids=[type(outcome[0]).__name__ for outcome in OUTCOMES])
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(words: list[str]) -> None:
        raise error

    monkeypatch.setattr("magi.cli.inspect.inspect_mask", fail)
    assert main(["inspect", "mask"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--debug", "model", "dgits"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "magi: error: unknown preset" in err


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("magi.cli.inspect.inspect_mask", lambda words: warnings.warn("fell back", stacklevel=2))
    assert main(["inspect", "mask"]) == 0
    assert capsys.readouterr().err == "magi: warning: fell back\n"


def test_words_of_options() -> None:
    assert parse_worker("3/8") == (3, 8)
    assert model_sources("a=build/run,b=x=y") == {"a": "build/run", "b": "x=y"}
    assert model_sources("build/run") == {"model": "build/run"}
    for wrong in ("8/8", "1", "-1/2", "a/b", "1/0"):
        with pytest.raises(ValueError, match="--worker"):
            parse_worker(wrong)
    for names in ("a,b=x", "=x", "a=", "a=x,a=y"):
        with pytest.raises(ValueError, match="MODEL"):
            model_sources(names)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "digits", "--training.stepz", "3"], "did you mean --training.steps?"),
        (["train", "digits", "--training.step", "3"], "did you mean --training.steps?"),
        (["train", "digits", "--training.step=3"], "did you mean --training.steps?"),
        (["train", "digits", "--steps", "3"], "did you mean --sampling.steps or --training.steps?"),
        (["train", "digits", "--training.micro-batches", "3"], "did you mean --training.micro-batch?"),
        (["train", "digits", "--nothing-like-it", "3"], "error: Unrecognized options: --nothing-like-it, 3 ("),
        (["sample", "demo", "out", "--frame", "3"], "did you mean --frames?"),
        (["train", "digits", "--training.steps", "many"], "error: --training.steps 'many': expected a whole number ("),
        (["train", "digits", "--training.steps", "1e3"], "error: --training.steps '1e3': expected a whole number ("),
        (["sample", "demo", "out", "--iterations", "x"], "error: --iterations 'x': expected a whole number ("),
        (["sample", "demo", "out", "--sampling.guidance", "1,5"], "--guidance '1,5': expected a number ("),
        (
            ["train", "digits", "--training.learning-rate", "high"],
            "--training.learning-rate 'high': expected a number (",
        ),
        (["sample", "demo"], "OUT"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and expected in said.err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"magi {magi.__version__}\n"
