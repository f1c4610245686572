"""One real run at toy size: videos, latents, training, generation, measures; and what is measured of known videos."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from magi.errors import DataError
from magi.training.log import read_metrics
from studies import measures, variants
from studies.measures import (
    blurred,
    clip_features,
    fid,
    frame_features,
    fvd,
    labels_of,
    load_or_compute,
    real_measures,
)
from studies.sources import Source, held_out_clips, prepare
from studies.variants import Budget, Run, measure, train
from tests.fakes.study_fakes import normal


def test_distances_of_known_features() -> None:
    real_BD, real_BTF = normal(0, 200, 4), normal(1, 50, 3, 4)
    assert fvd(real_BD + 2.0, real_BD) == pytest.approx(16.0, rel=1e-4)
    assert fvd(real_BD, real_BD) == pytest.approx(0.0, abs=1e-5)
    # The first frame is given, so only the two others count: 4 x 1 and 4 x 9, in the mean 20.
    shifted = real_BTF + torch.tensor([50.0, 1.0, 3.0])[None, :, None]
    assert fid(shifted, real_BTF) == pytest.approx(20.0, rel=1e-4)


def test_features_are_a_row_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    video = (255 * torch.rand(3, 8, 64, 64, 3, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    video[1] = 51
    found = clip_features(video, "cpu")
    assert found["digits3d"].shape == (3, 64) and found["grey_edges"].shape == (3, 8, 96)
    assert found["grey_edges"][1, :, :64].mean().item() == pytest.approx(0.2, abs=1e-6)
    assert found["grey_edges"][1, :, 64:].abs().max() < 1e-6, "an even frame has no edges"
    monkeypatch.setattr(measures, "BATCH", 2)
    torch.testing.assert_close(clip_features(video, "cpu")["digits3d"], found["digits3d"], rtol=1e-4, atol=1e-4)


def test_every_clip_has_its_own_seed_context_and_class_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the guidance of the scale that is measured."""
    calls: list[dict[str, Any]] = []

    def pipe(**given: Any) -> Any:
        calls.append(given | {"seeds": list(given["seeds"])})
        shape = (len(calls[-1]["seeds"]), given["frames"], 64, 64, 3)
        return SimpleNamespace(video_BTHWC=torch.zeros(shape, dtype=torch.uint8))

    monkeypatch.setattr(measures, "BATCH", 2)
    context_BTHWC = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1, 1)
    measures.predicted(pipe, context_BTHWC, 3, [4, 5, 6, 7, 8], longer="window")  # type: ignore[arg-type]
    assert [call["seeds"] for call in calls] == [[0, 1], [2, 3], [4]]
    assert [call["labels"] for call in calls] == [[4, 5], [6, 7], [8]]
    assert [call["context"].flatten().tolist() for call in calls] == [[0, 1], [2, 3], [4]]
    assert all(call["sampling"] == {"longer": "window"} and call["frames"] == 3 for call in calls)
    calls.clear()
    found = measures.guided_measures(pipe, [1, 2, 3], 2.5, "cpu")  # type: ignore[arg-type]
    assert set(found) == {"digits3d_guidance_2.5", "class_guidance_2.5"} and not found["class_guidance_2.5"].any()
    assert [call["labels"] for call in calls] == [[1, 2], [3]]
    assert [call["sampling"] for call in calls] == [{"guidance": 2.5}] * 2
    assert all(call["context"] is None for call in calls)


def test_measures_are_saved_with_their_settings(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a" / "m.safetensors", {"grey_edges": normal(0, 2, 2, 4), "x": normal(1, 2)}
    computed = load_or_compute(path, "one", lambda: tensors)
    assert "x" in computed and "y" not in computed

    def again() -> dict[str, torch.Tensor]:
        raise AssertionError("what is on disk is not computed again")

    found = load_or_compute(path, "one", again)
    assert torch.equal(found["x"], normal(1, 2)) and found["grey_edges"].dtype == torch.float16
    with pytest.raises(ValueError, match=r"other settings \(one\)"):
        load_or_compute(path, "two", again)


def test_the_distance_of_frames_sees_blur_and_displacement() -> None:
    """Squares at random places: what is where, and how sharp, must both show."""
    generator = torch.Generator().manual_seed(5)

    def squares(clips: int, right: int = 0) -> torch.Tensor:
        video = torch.zeros(clips, 2, 64, 64, 3, dtype=torch.uint8)
        for clip, (y, x) in enumerate(torch.randint(8, 40, (clips, 2), generator=generator).tolist()):
            video[clip, :, y : y + 12, x + right : x + right + 12] = 200
        return video

    real, other = frame_features(squares(300)), squares(300)
    floor = fid(frame_features(other), real)
    assert fid(frame_features(blurred(other)), real) > 2 * floor
    assert fid(frame_features(squares(300, right=8)), real) > 2 * floor
    assert float(blurred(other).float().mean()) == pytest.approx(float(other.float().mean()), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ctf", "ctf-class"])
def test_a_toy_run_is_trained_measured_and_read_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (variants, measures):
        monkeypatch.setattr(module, "LONG_FRAMES", 20)
        monkeypatch.setattr(module, "LONG_CLIPS", 2)
        monkeypatch.setattr(module, "GUIDANCE_SCALES", (1.0, 3.0))
    place, run = Source("digits", tmp_path / "digits", 10, 8), Run(name, "digits", 0, Budget(steps=2, batch=2))
    prepare(place, "cpu")
    assert labels_of(place, 4) == [0, 1, 2, 3]
    folder = run.folder(tmp_path)
    train(run, place, folder, "cpu")
    assert read_metrics(folder / "run")[-1]["step"] == 2
    made = measure(run, place, folder, "cpu")
    assert made["digits3d"].shape == (4, 64) and made["class_accuracy"].shape == (2, 20)
    assert ("interpolated_adjacent_l2" in made) == (name == "ctf")
    assert ("digits3d_guidance_3" in made) == (name == "ctf-class")
    monkeypatch.setattr(variants.MagiPipeline, "from_pretrained", None)  # a second call generates nothing
    again = measure(run, place, folder, "cpu")
    assert all(torch.equal(again[key], value) for key, value in made.items())
    real = real_measures(place, place.folder, "cpu")
    assert real["adjacent_l2"].shape == (2, 19) and real["adjacent_l2_8"].shape == (2, 19)
    clips, others = held_out_clips(place, 16), held_out_clips(place, 16, "reference")
    assert len(clips) == len(others) == 4
    assert all(bool((clip != other).any()) for clip in clips for other in others), "no video is in both halves"
    with pytest.raises(DataError, match="frames, 801 are needed"):
        held_out_clips(place, 101, interval=8)
    for name, held_against in (("digits3d", others), ("floor_digits3d", clips)):
        torch.testing.assert_close(real[name], clip_features(held_against, "cpu")["digits3d"])
    # The clip and the clip that it is held against begin with the same frame.
    assert torch.equal(made["grey_edges"][:, 0], clip_features(clips, "cpu")["grey_edges"][:, 0].half())
