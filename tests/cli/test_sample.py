"""What is asked for on the command line is what reaches the sampler: every setting, seed, label and context frame."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from magi.cli import sample
from magi.cli.main import main
from magi.cli.options import SHORT
from magi.cli.sample import ContextVideo
from magi.config import SamplingConfig
from magi.data.captions import read_caption
from magi.data.sample_grid import prompt_label
from magi.errors import NumericsError
from magi.sampling.pipeline import MagiPipeline
from magi.sampling.prepared import PreparedSampler
from tests.sampling.test_pipeline import some_video, tiny_pipeline
from tests.sampling.test_prompts import text_pipeline

OTHER: dict[str, Any] = {
    "iterations": 1, "steps": 4, "temperature": 0.5, "x0_limit": 2.0,
    "guidance": 3.0, "guidance_schedule": "constant", "noise_level": 2, "precision": "fp32", "context_frames": 2,
    "longer": "interpolate", "window_keep": 1, "first_timestep": 15, "last_timestep": 5,
    "first_frame_steps": 6, "fast_steps": 5, "fast_first_timestep": 12, "fast_last_timestep": 3,
    "fast_score": 1.02,
    "prompt_change": "observe_anew",
}  # fmt: skip
"""For every field a value that the tiny model's config has not."""


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> MagiPipeline:
    made = tiny_pipeline()
    monkeypatch.setattr(sample, "_load", lambda model, device, text_encoder="": made)
    return made


@pytest.fixture
def sampled_with(monkeypatch: pytest.MonkeyPatch) -> list[SamplingConfig]:
    """Settings of every batch of videos, as the sampler has them."""
    seen: list[SamplingConfig] = []
    plain = PreparedSampler.begin

    def begin(self: PreparedSampler, settings: SamplingConfig, *rest: Any) -> None:
        seen.append(settings)
        plain(self, settings, *rest)

    monkeypatch.setattr(PreparedSampler, "begin", begin)
    return seen


def run(out: Path, *options: object) -> int:
    return main(["sample", "tiny", str(out), "--frames", "2", *map(str, options)])


def written(out: Path) -> bytes:
    return (out / "video_00000.mp4").read_bytes()


@pytest.mark.parametrize("name", SamplingConfig.model_fields)
def test_every_setting_reaches_the_sampler(
    pipeline: MagiPipeline, sampled_with: list[SamplingConfig], tmp_path: Path, name: str
) -> None:
    base, option = pipeline.config.sampling, name.replace("_", "-")
    expected = base.changed(**{name: OTHER[name]})
    assert getattr(base, name) != OTHER[name]
    assert run(tmp_path / "long", f"--sampling.{option}", OTHER[name]) == 0
    assert sampled_with == [expected]
    if name in SHORT:
        assert run(tmp_path / "short", f"--{option}", OTHER[name]) == 0
        assert sampled_with == [expected, expected]
        assert written(tmp_path / "long") == written(tmp_path / "short")


def test_settings_are_those_of_the_config_and_go_over_a_speed(
    pipeline: MagiPipeline, sampled_with: list[SamplingConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = pipeline.config.sampling.changed(steps=10, first_timestep=18)
    pipeline.config = pipeline.config.model_copy(update={"sampling": base})
    assert run(tmp_path, "--speed", "fast") == 2
    assert "speed 'fast': no steps are known that keep this model's quality" in capsys.readouterr().err
    base = base.changed(fast_steps=5, fast_first_timestep=12, fast_last_timestep=3, fast_score=1.02, iterations=2)
    pipeline.config = pipeline.config.model_copy(update={"sampling": base})
    assert run(tmp_path) == run(tmp_path, "--speed", "fast") == run(tmp_path, "--speed", "fast", "--steps", 7) == 0
    fast = base.changed(steps=5, first_timestep=12, last_timestep=3)
    assert sampled_with == [base, fast, fast.changed(steps=7)]
    printed = capsys.readouterr().out
    cost = "3 passes of the transformer and {} of the head"
    for steps, quality in (
        (5, "energy score of its tokens 1.02 times that of full (lower is better)"),
        (7, "not measured"),
    ):
        line = f"speed fast: {steps} steps a token, timestep 12 to 3: {cost.format(2 * steps)} a frame"
        assert f"{line} (full: {cost.format(20)}); {quality}\n" in printed


def test_a_wrong_setting_is_one_line(
    pipeline: MagiPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, line in (
        (
            ("--sampling.guidanc", 3),
            "error: Unrecognized options: --sampling.guidanc, 3; did you mean --sampling.guidance?",
        ),
        (("--sampling.steps", 0), "sampling: steps: Input should be greater than or equal to 1 (got 0)"),
        (("--sampling.longer", "ever"), "--sampling.longer"),
    ):
        assert run(tmp_path / "out", *options) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def streams_of(pipeline: MagiPipeline, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each stream of the pipeline is asked for, from now on."""
    calls: list[dict[str, Any]] = []
    plain = pipeline.stream
    monkeypatch.setattr(pipeline, "stream", lambda **asked: calls.append(asked) or plain(**asked))
    return calls


def test_video_k_has_seed_k_in_batches_and_the_label_and_interval_asked_for(
    pipeline: MagiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = streams_of(pipeline, monkeypatch)
    assert run(tmp_path, "--count", 3, "--batch", 2, "--seed", 5, "--label", "dog", "--interval", 3) == 0
    assert [list(call["seeds"]) for call in calls] == [[5, 6], [7]]
    assert {(call["frames"], call["labels"], call["interval"], call["context"]) for call in calls} == {
        (2, "dog", 3, None)
    }


@pytest.mark.parametrize(("fps", "shown"), [(0, 12.5), (12, 6.0)])
def test_videos_have_the_rate_of_the_models_data_over_the_interval(
    pipeline: MagiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fps: float, shown: float
) -> None:
    data = pipeline.config.data.model_copy(update={"fps": fps})
    monkeypatch.setattr(pipeline, "config", pipeline.config.model_copy(update={"data": data}))
    assert run(tmp_path, "--interval", 2) == 0
    with av.open(tmp_path / "video_00000.mp4") as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(shown)


def test_a_video_is_its_context_and_then_what_was_generated(
    pipeline: MagiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, saved = [], []
    context = ContextVideo(some_video(2).numpy(), 5.0)
    monkeypatch.setattr(sample, "read_context", lambda *given: asked.append(given) or context)
    monkeypatch.setattr("magi.data.video_writer.write_mp4", lambda path, video, fps: saved.append((video, fps)))
    options = ("--context", "a.mp4", "--context-frames", 2, "--interval", 3, "--count", 2, "--frames", 5)
    assert run(tmp_path, *options) == 0
    assert [given[:3] for given in asked] == [(Path("a.mp4"), 2, 3)]
    expected: Tensor = pipeline(frames=5, context=some_video(2), interval=3, seeds=[0, 1]).video_BTHWC
    for (video_THWC, fps), known_THWC in zip(saved, expected.numpy(), strict=True):
        assert fps == 5.0 and np.array_equal(video_THWC, known_THWC)


def test_videos_that_break_leave_no_file(
    pipeline: MagiPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        pipeline.model.head.output.bias.fill_(float("nan"))
    assert run(tmp_path / "out", "--count", 2, "--batch", 1) == NumericsError.exit_code
    assert "frame 0 is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_an_earlier_call_are_told_and_those_of_other_seeds_stay(
    pipeline: MagiPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--count", 2) == 0
    assert "overwritten" not in capsys.readouterr().out
    first = written(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert run(tmp_path, "--seed", 1, "--count", 2) == 0
    assert f"{tmp_path}: of 5 files there 3 are overwritten, the others stay\n" in capsys.readouterr().out
    assert written(tmp_path) == first and (tmp_path / "video_00002.mp4").is_file()


# Prompts


@pytest.fixture
def with_text(monkeypatch: pytest.MonkeyPatch) -> MagiPipeline:
    made = text_pipeline()
    monkeypatch.setattr(sample, "_load", lambda model, device, text_encoder="": made)
    return made


def test_a_line_of_prompts_is_a_video_named_after_it(with_text: MagiPipeline, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("\ufeffA seven,  up\n\U0001f43b\na seven, up\n", encoding="utf-8")
    assert run(tmp_path / "out", "--prompts", lines, "--seed", 4, "--count", 2, "--batch", 4) == 0
    videos = sorted(path.stem for path in (tmp_path / "out").glob("*.mp4"))
    names = ["001_a-seven-up", "002_prompt", "003_a-seven-up"]
    assert videos == [f"{name}_{seed:05d}" for name in names for seed in (4, 5)]
    captions = [read_caption(tmp_path / "out" / f"{name}.mp4") for name in videos]
    assert captions == ["A seven, up"] * 2 + ["\U0001f43b"] * 2 + ["a seven, up"] * 2
    assert run(tmp_path / "one", "--prompt", "\U0001f43b", "--seed", 5) == 0
    bytes_of = [(tmp_path / path).read_bytes() for path in ("out/002_prompt_00005.mp4", "one/video_00005.mp4")]
    assert bytes_of[0] == bytes_of[1] and read_caption(tmp_path / "one/video_00005.mp4") == "\U0001f43b"
    assert not list((tmp_path / "one").glob("*_00004*"))


def test_every_video_is_asked_for_by_its_own_prompt(
    with_text: MagiPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = streams_of(with_text, monkeypatch)
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    options = ("--prompts", tmp_path / "prompts.txt", "--count", 2, "--batch", 4, "--negative-prompt", "d")
    assert run(tmp_path / "out", *options) == 0
    assert [list(call["prompt"]) for call in calls] == [["a", "a", "b", "b"], ["c", "c"]]
    assert [list(call["seeds"]) for call in calls] == [[0, 1, 0, 1], [0, 1]]
    assert {call["negative_prompt"] for call in calls} == {"d"}
    assert run(tmp_path / "one", "--prompt", "e") == run(tmp_path / "none") == 0
    assert [call["prompt"] for call in calls[2:]] == [["e"], None] and calls[-1]["negative_prompt"] is None


def test_a_label_of_the_sheet_is_the_prompt_in_a_few_short_lines() -> None:
    assert prompt_label("a bold seven") == "a bold seven"
    lines = prompt_label("a seven that goes up " * 20).split("\n")
    assert len(lines) == 4 and max(map(len, lines)) <= 36 and lines[-1].endswith(" ...")


def test_the_negative_prompt_reaches_the_sampler(with_text: MagiPipeline, tmp_path: Path) -> None:
    for name, options in (("plain", ()), ("away", ("--negative-prompt", "b"))):
        assert run(tmp_path / name, "--prompt", "a", "--guidance", 3, *options) == 0
    assert written(tmp_path / "plain") != written(tmp_path / "away")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\n\nb\n", "line 2 is empty; remove it"),
        ("", "has no lines"),
        ("a\x07", "line 1: character 1 is U+0007"),
        (b"caf\xe9", "cannot be read ('utf-8' codec"),
        ("x" * 10_000, "prompt: text of 10,000 bytes; the model reads 20"),
        (None, "no such file (--prompts)"),
    ],
)
def test_bad_prompts_are_one_line_and_no_file(
    with_text: MagiPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, line: str
) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(tmp_path / "out", "--prompts", path) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_model_without_text_and_two_kinds_of_prompts(
    pipeline: MagiPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", "--prompt", "a") == 2
    assert "prompt: this model has no text; leave it out" in capsys.readouterr().err
    assert run(tmp_path / "out", "--prompt", "a", "--prompts", tmp_path / "p.txt") == 2
    assert "--prompt and --prompts: give one of them" in capsys.readouterr().err
