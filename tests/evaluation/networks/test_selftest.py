"""Claims: the self-test judges what sources settle, shows the rest, and lists what it could not run, by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.evaluation.networks import load, selftest, selftest_published
from magi.evaluation.networks.i3d import I3d
from magi.evaluation.networks.load import I3dFeatures, artificial_lpips
from magi.evaluation.networks.selftest import Check, artificial_checks, black_against_white, judged, summary
from magi.evaluation.networks.selftest_published import noise_distance, published_checks


def test_a_number_is_judged_by_its_distance_and_nan_fails() -> None:
    assert judged("a", 1.05, 1.0, 0.1).outcome == "passed"
    assert judged("a", 1.2, 1.0, 0.1).outcome == "failed"
    assert judged("a", float("nan"), 1.0, 0.1).outcome == "failed"


def test_black_against_white_is_the_squared_distance_of_the_features() -> None:
    seen = []

    def features(video_BTHWC: Tensor) -> Tensor:
        seen.append(video_BTHWC)
        return video_BTHWC.float().amax((1, 2, 3)) / 255 * torch.tensor([3.0, 0.0, 4.0])

    assert black_against_white(features, frames=15) == 25.0
    assert [tuple(video.shape) for video in seen] == [(1, 15, 64, 64, 3)] * 2
    assert seen[0].dtype == torch.uint8 and seen[0].max() == 0 and seen[1].min() == 255


@pytest.mark.slow
def test_artificial_checks_pass_here() -> None:
    checks = list(artificial_checks())
    assert len(checks) == 4 and all(check.outcome == "passed" for check in checks), checks


def test_artificial_checks_notice_a_wrong_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "artificial_i3d", lambda: Stub({17: 1.0}))
    monkeypatch.setattr(selftest, "artificial_inception", lambda: Stub({}))
    check = next(artificial_checks())
    assert check.name.startswith("i3d") and check.outcome == "failed"


def test_artificial_lpips_passes_and_swapped_colours_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case = selftest.json.loads(selftest.EXPECTED.read_text())["lpips"]["alex"]
    assert selftest._lpips_check("alex", case, "cpu", 1e-5).outcome == "passed"
    signed = load._signed
    monkeypatch.setattr(load, "_signed", lambda images_BHWC: signed(images_BHWC).flip(1))
    assert selftest._lpips_check("alex", case, "cpu", 1e-5).outcome == "failed"


def test_without_weights_every_check_is_listed_as_not_run(tmp_path: Path) -> None:
    checks = list(published_checks(cache=tmp_path))
    assert {check.outcome for check in checks} == {"not run", "out of reach"}
    for kind in ("i3d", "i3d-torchscript", "inception", "alexnet", "lpips-alex"):
        assert any(f"import-weights {kind} FILE" in check.note for check in checks)
    assert summary(checks).startswith("0 passed, 0 failed, 0 shown, ")


class Stub(I3dFeatures):
    """I3D whose black-against-white distance is that of a table."""

    def __init__(self, table: dict[int, float]) -> None:
        with torch.device("meta"):
            super().__init__(I3d(), "stub")
        self.table = table

    def to(self, device: torch.device | str) -> "Stub":
        return self

    def features(self, video_BTHWC: Tensor) -> Tensor:
        frames = video_BTHWC.shape[1]
        value_B1 = (video_BTHWC[:, 0, 0, 0, :1].float() / 255) * self.table.get(frames, 0.0) ** 0.5
        return torch.cat([value_B1, torch.zeros(len(value_B1), 399)], dim=1)


class Weights:
    sha256 = "abc"

    def tensors(self) -> dict[str, Tensor]:
        return {"Mixed_3b.b0.bn.weight": torch.ones(3)}


@pytest.fixture
def i3d_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The checks of I3D with a stub that answers from a table."""
    (tmp_path / "i3d").mkdir()
    monkeypatch.setattr(selftest_published, "has_weights", lambda kind, cache: kind == "i3d")
    monkeypatch.setattr(selftest_published, "stored_weights", lambda kind, cache: Weights())

    def checks(table: dict[int, float]) -> dict[str, Check]:
        monkeypatch.setattr(selftest_published, "load_i3d", lambda *words, **named: Stub(table))
        return {check.name: check for check in published_checks(cache=tmp_path)}

    return checks


def test_published_values_are_judged_for_the_published_epsilon_only(i3d_checks: Any) -> None:
    right = {15: 131.4, 30: 151.3, 16: 152.9, 17: 300.0}
    checks = i3d_checks(right)
    name = "i3d ({}): black against white, {} frames"
    assert checks[name.format("published eps 0.001", 15)].outcome == "passed"
    assert checks[name.format("published eps 0.001", 30)].outcome == "passed"
    shown = checks[name.format("published eps 0.001", 17)]
    assert shown.outcome == "shown" and (shown.measured, shown.expected) == ("300.000", "357.740")
    assert checks[name.format("torch-port eps 1e-05", 15)].outcome == "shown"
    assert checks["i3d: gamma is 1"].outcome == "passed"
    wrong = i3d_checks(right | {15: 134.24, 30: 149.0})
    assert wrong[name.format("published eps 0.001", 15)].outcome == "failed"
    assert wrong[name.format("published eps 0.001", 30)].outcome == "failed"


def test_a_gamma_other_than_one_fails(i3d_checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Weights, "tensors", lambda self: {"a.bn.weight": torch.tensor([1.0, 1.001])})
    assert i3d_checks({})["i3d: gamma is 1"].outcome == "failed"


def test_the_first_output_is_recorded_and_held_later(i3d_checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "i3d: same output as at the first self-test"
    assert i3d_checks({17: 4.0})[name].outcome == "shown"
    assert i3d_checks({17: 4.0})[name].outcome == "passed"
    assert i3d_checks({17: 9.0})[name].outcome == "failed"
    monkeypatch.setattr(Weights, "sha256", "another file")
    assert i3d_checks({17: 9.0})[name].outcome == "shown"


def test_noise_is_run_when_asked_for(i3d_checks: Any) -> None:
    check = i3d_checks({})["i3d: uniform noise"]
    assert check.outcome == "not run" and "--noise" in check.note


def test_noise_is_numpy_s_old_generator_of_seeds_1_and_2() -> None:
    """With the pixels' mean as the only feature, the distance is that of two numbers per clip."""
    distance = noise_distance(lambda video_BCTHW: video_BCTHW.mean((2, 3, 4)), count=8, frames=2, side=6)
    import numpy as np

    sets = [np.random.RandomState(seed).rand(8, 2, 6, 6, 3).mean((1, 2, 3)) for seed in (1, 2)]
    means = float(((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum())
    products = np.cov(sets[0].T) @ np.cov(sets[1].T)
    roots = 2 * np.sqrt(np.linalg.eigvals(products).real).sum()
    expected = means + np.trace(np.cov(sets[0].T)) + np.trace(np.cov(sets[1].T)) - roots
    assert distance == pytest.approx(expected, rel=1e-4)


def test_lpips_examples_are_read_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    measure = artificial_lpips("alex")
    monkeypatch.setattr(selftest_published, "has_weights", lambda kind, cache: kind in ("alexnet", "lpips-alex"))
    monkeypatch.setattr(selftest_published, "load_lpips", lambda trunk, cache: measure)
    unread = {check.name: check for check in published_checks(cache=tmp_path)}["lpips alex: ex_ref.png to ex_p0.png"]
    assert unread.outcome == "not run" and "--lpips-images" in unread.note
    for grey, name in enumerate(("ex_ref.png", "ex_p0.png", "ex_p1.png")):
        Image.new("RGB", (40, 40), (60 * grey, 90, 30)).save(tmp_path / name)
    checks = {check.name: check for check in published_checks(lpips_images=tmp_path, cache=tmp_path)}
    assert checks["lpips alex: ex_ref.png to ex_p0.png"].outcome == "failed"  # artificial weights, flat images
    (tmp_path / "ex_p0.png").unlink()
    with pytest.raises(ValueError, match=r"ex_p0\.png: no such image"):
        list(published_checks(lpips_images=tmp_path, cache=tmp_path))


def test_the_summary_counts_every_outcome() -> None:
    check = Check("a", "passed")
    checks = [check, check, replace(check, outcome="not run"), replace(check, outcome="failed")]
    assert summary(checks) == "2 passed, 1 failed, 0 shown, 1 not run, 0 out of reach"
