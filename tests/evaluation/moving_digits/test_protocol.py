"""``evaluate_digits`` on stand-in models whose figures are known: what it reads, judges and refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi.data.moving_digits import write_digits
from magi.errors import DataError
from magi.evaluation.moving_digits.protocol import TARGETS, evaluate_digits, read_real_clips
from magi.presets import preset
from magi.vae.pixel import PixelVae

CLIPS, FRAMES, CONTEXT = 4, 20, 4


@pytest.fixture(scope="module", autouse=True)
def _few_digits_for_the_classifier() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magi.evaluation.moving_digits.protocol._CLASSIFIER_CLIPS", 50)
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    write_digits(folder, CLIPS, size=48, seed=11, frames=FRAMES + 4)
    return folder


class Repeat:
    """A pipeline that repeats the last context frame."""

    def __init__(self) -> None:
        self.vae, self.config, self.calls = PixelVae(8), preset("digits"), 0
        self.model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)

    def stream(self, *, frames: int, context: torch.Tensor, labels: Any, seeds: Any) -> Iterator[torch.Tensor]:
        self.calls += 1
        return iter([context[:, -1]] * (frames - context.shape[1]))


def evaluate(model: Any, videos: Path, out: Path, name: str = "still", **settings: Any) -> dict[str, Any]:
    return evaluate_digits(
        {name: model}, videos, out, **({"frames": FRAMES, "context": CONTEXT, "count": CLIPS} | settings)
    )


@pytest.fixture(scope="module")
def evaluated(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("evaluated")
    return evaluate(Repeat(), videos, out), out


def test_real_and_reconstructed_clips_are_perfect(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, _ = evaluated
    assert list(results["series"]) == ["real", "vae", "still"]
    for name in ("real", "vae"):
        for figures in results["series"][name]["ranges"].values():
            assert figures["class_kept"]["mean"] == 1
            assert figures["path_error_px"]["mean"] < 0.5
            assert figures["energy_ratio"]["mean"] == pytest.approx(1, abs=0.01)


def test_still_video_errs_by_the_exact_way_of_the_sidecars(
    evaluated: tuple[dict[str, Any], Path], videos: Path
) -> None:
    results, _ = evaluated
    sidecars = [json.loads(path.read_text()) for path in sorted(videos.glob("?/*.json"))]
    path_BT2 = np.array([sidecar["glyphs"][0]["positions"] for sidecar in sidecars])[:, :FRAMES]
    error_T = np.linalg.norm(path_BT2 - path_BT2[:, CONTEXT - 1 : CONTEXT], axis=-1).mean(0)
    error_T[:CONTEXT] = 0  # context frames are the real ones
    found = results["series"]["still"]["per_frame"]["path_error_px"]["mean"]
    np.testing.assert_allclose(found, error_T, atol=0.1)
    near = results["series"]["still"]["ranges"]["5-16"]["path_error_px"]
    assert near["mean"] == pytest.approx(error_T[4:16].mean(), abs=0.1)
    assert near["low"] <= near["mean"] <= near["high"]


def test_targets_are_judged_on_the_ranges_they_name(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, _ = evaluated
    judged = results["targets"]["still"]
    assert [(one["frames"], one["oracle"]) for one in judged] == [("5-16", "class_kept"), ("5-16", "path_error_px")]
    assert [one["met"] for one in judged] == [True, False]
    energy = next(target for target in TARGETS if target.oracle == "energy_ratio")
    assert [energy.met(value) for value in (0.69, 0.7, 1.3, 1.31)] == [False, True, True, False]


def test_files_and_settings_are_there(evaluated: tuple[dict[str, Any], Path]) -> None:
    results, out = evaluated
    assert json.loads((out / "digits.json").read_text()) == results
    for name in ("report.html", "curves.png", "contact_sheet.png", "comparison.mp4", "comparison.gif"):
        assert (out / name).stat().st_size > 1000
    assert results["settings"]["videos"] == {"size": 48, "fps": 25, "seed": 11}
    assert results["classifier"]["accuracy_now"] >= 0.98
    assert results["models"]["still"]["vae"] == PixelVae(8).id
    assert str(out) not in (out / "digits.json").read_text()


def test_second_call_reuses_what_does_not_change(evaluated: tuple[dict[str, Any], Path], videos: Path) -> None:
    results, out = evaluated
    model = Repeat()
    told: list[tuple[str, int, int]] = []
    assert evaluate(model, videos, out, progress=lambda *call: told.append(call)) == results
    assert model.calls == 0
    assert told[-1][1] == told[-1][2]


def test_clips_are_read_in_order_of_their_numbers_each_with_its_class_and_path(tmp_path: Path) -> None:
    write_digits(tmp_path, 12, size=48, seed=0, frames=3)
    clips, source = read_real_clips(tmp_path, 11, 2)
    assert [clip.label for clip in clips] == [*range(10), 0]  # the first clips hold all classes
    assert all(clip.video_THWC.shape == (2, 48, 48, 3) and clip.path_T2.shape == (2, 2) for clip in clips)
    assert source == {"size": 48, "fps": 25, "seed": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": CLIPS + 1}, "holds 4 clips, asked 5"),
        ({"frames": 30}, "24 frames, asked 30"),
        ({"context": FRAMES}, "context 20 must be"),
        ({"context": 0}, "context 0 must be"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(videos: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Repeat(), videos, tmp_path, **settings)


def test_unusable_names_and_folders_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be called 'real'"):
        evaluate(Repeat(), videos, tmp_path, name="real")
    with pytest.raises(ValueError, match="no model"):
        evaluate_digits({}, videos, tmp_path)
    with pytest.raises(ValueError, match="no built-in videos"):
        evaluate(Repeat(), tmp_path / "nowhere", tmp_path)


def test_unfit_videos_are_refused(tmp_path: Path) -> None:
    write_digits(tmp_path / "two", 1, size=48, seed=0, glyphs=2, frames=8)
    with pytest.raises(ValueError, match="one glyph"):
        read_real_clips(tmp_path / "two", 1, 8)
    write_digits(tmp_path / "one", 1, size=48, seed=0, frames=8)
    mp4 = next((tmp_path / "one").glob("0/*.mp4"))
    mp4.write_bytes(mp4.read_bytes()[:700])
    with pytest.raises(DataError, match=mp4.name):
        read_real_clips(tmp_path / "one", 1, 8)
    mp4.with_suffix(".json").write_text("{}")
    with pytest.raises(DataError, match="not a sidecar"):
        read_real_clips(tmp_path / "one", 1, 8)
