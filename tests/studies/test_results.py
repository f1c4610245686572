"""Every study end to end on measures with known differences: the verdicts, and the files."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from magi.errors import DataError
from runs.study_page import listing
from studies import ctf_vs_mtf, drift, exposure_bias, guidance, length, linear_attention
from studies.guidance import GuidanceOptions
from studies.length import LengthOptions
from studies.measures import FID, FVD
from studies.results import CLAIMS, read_report
from studies.variants import LINEAR, OneSeedOptions, StudyOptions
from tests.fakes.study_fakes import BUDGET, curves, real_tensors, write_real, write_run

BEGIN, END = "<!-- results:studies:begin -->", "<!-- results:studies:end -->"


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effects here are far from their bounds."""
    monkeypatch.setattr("studies.statistics.TAIL_DRAWS", 0.1)


def options(kind: type[Any], tmp_path: Path, **given: Any) -> Any:
    write_real(tmp_path)
    known = {"out": tmp_path, "results": tmp_path / "results", "budget": BUDGET, "device": "cpu"}
    return kind(**(known | given))


def read(path: Path | None) -> dict[str, Any]:
    assert path is not None and path.with_suffix(".png").stat().st_size > 1000
    return read_report(path)


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {part["text"]: part["verdict"] for part in report["statements"]}


CTF = "ctf-without-noise"
"""What is held against MTF: nothing but the teacher forcing differs."""


def test_ctf_vs_mtf_supported_and_contradicted(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, CTF, seed, shift=0.5)
        write_run(tmp_path, "mtf", seed, shift=1.0)
        write_run(tmp_path, "ctf", seed, shift=2.0)
    report = read(ctf_vs_mtf.study(options(StudyOptions, tmp_path, seeds=3)))
    noisy = "with noise on observations, too: "
    assert verdicts(report) == {
        f"{FVD} is lower with CTF": "supported",
        f"{FID} about equal or better": "supported",
        f"{noisy}{FVD} is lower than with MTF": "contradicted",
        f"{noisy}{FID} about equal or better": "supported",
    }
    assert report["verdict"] == "supported", "the variant with noise, which MTF cannot have, decides nothing"
    found = report["numbers"]["variants"]
    # The distance of features shifted by s in 64 dimensions is 64 s^2; seed k is shifted by 0.02 (k + 1) more.
    assert found["mtf"][FVD] == pytest.approx([64 * (1.02 + 0.02 * seed) ** 2 for seed in range(3)], rel=1e-3)
    effects = [found[CTF][FVD][seed] / found["mtf"][FVD][seed] - 1 for seed in range(3)]
    assert report["statements"][0]["effect"]["per_seed"] == pytest.approx(effects, rel=1e-3)
    assert len(found[CTF][FID]) == 3
    for seed in range(3):
        write_run(tmp_path, CTF, seed, shift=1.5)
    report = read(ctf_vs_mtf.study(options(StudyOptions, tmp_path, seeds=3)))
    assert report["verdict"] == "contradicted" and verdicts(report)[f"{FVD} is lower with CTF"] == "contradicted"


@pytest.mark.parametrize(("shift", "verdict"), [(1.0, "supported"), (0.5, "supported"), (1.5, "contradicted")])
def test_linear_attention_about_equal_or_better_and_its_long_videos_decide_nothing(
    tmp_path: Path, shift: float, verdict: str
) -> None:
    write_run(tmp_path, "ctf", 0, shift=1.0)
    write_run(tmp_path, LINEAR, 0, shift=shift, level=9.0)
    report = read(linear_attention.study(options(OneSeedOptions, tmp_path)))
    found = verdicts(report)
    assert report["verdict"] == verdict == found[f"{FVD} about equal or better"]
    assert found["long, state: adjacent_l2 of the last 16 frames near real"] == "contradicted"
    assert found["long, window: sharpness of the last 16 frames near real"] == "supported"
    assert report["settings"]["variants"][LINEAR][-2:] == ["--model.temporal", "gated_linear"]


def test_seeds_that_disagree_decide_nothing(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.5, 1.5, 0.9)):
        for name in (CTF, "ctf"):
            write_run(tmp_path, name, seed, shift=shift)
        write_run(tmp_path, "mtf", seed, shift=1.0)
    report = read(ctf_vs_mtf.study(options(StudyOptions, tmp_path, seeds=3)))
    assert report["verdict"] == "inconclusive"


def test_a_result_says_how_to_repeat_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ctf", CTF, "mtf"):
        write_run(tmp_path, name, 0)
    report = read(ctf_vs_mtf.study(options(StudyOptions, tmp_path, seeds=1)))
    assert report["settings"]["budget"] == {"steps": 4, "batch": 2, "size": "tiny", "clips": 8, "short": True}
    assert report["settings"]["variants"]["mtf"][1] == "masked" and report["versions"]["torch"]
    told = "\n".join(report["notes"])
    assert "short training: 8 clips a run" in told and "one seed" in told and "insensitive" not in told
    words = "python -m studies.ctf_vs_mtf --seeds 1 --budget.steps 4 --budget.batch 2"
    assert report["settings"]["command"] == words and report["scale"] == "digits-tiny-4x2"
    assert report["numbers"]["real"]["shuffled"][FVD] > 10 * report["numbers"]["real"]["floor"][FVD] > 0
    said = capsys.readouterr().out
    assert FVD in said and "FVD of" not in said and "here: " in said and "short training" in said


def test_a_measure_that_is_insensitive_to_motion_is_named(tmp_path: Path) -> None:
    for name in ("ctf", CTF, "mtf"):
        write_run(tmp_path, name, 0)
    asked = options(StudyOptions, tmp_path, seeds=1)
    write_real(tmp_path, frozen_digits3d=real_tensors()["floor_digits3d"].clone())
    assert any("insensitive to motion" in note for note in read(ctf_vs_mtf.study(asked))["notes"])
    write_real(tmp_path, blurred_grey_edges=real_tensors()["floor_grey_edges"].clone())
    assert any("insensitive to sharpness" in note for note in read(ctf_vs_mtf.study(asked))["notes"])


def test_exposure_bias_of_one_seed(tmp_path: Path) -> None:
    shifts = {"ctf": 0.4, "ctf-without-noise": 0.7, "ctf-without-interval": 1.2, "ctf-without-both": 1.0}
    for name, shift in (shifts | {"mtf": 1.1, "mtf-without-interval": 1.4}).items():
        write_run(tmp_path, name, 0, shift=shift)
    report = read(exposure_bias.study(options(StudyOptions, tmp_path, seeds=1)))
    assert verdicts(report) == {
        "interval alone helps": "supported",
        "noise alone helps": "contradicted",
        "both are better than interval alone": "supported",
        "both are better than noise alone": "supported",
        "interval helps MTF": "supported",
    }
    assert (
        report["verdict"] == "contradicted" and "bootstrap over 96 clips" in report["statements"][0]["effect"]["method"]
    )


def test_drift_near_the_real_curve(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "ctf", seed, level=1.0)
        write_run(tmp_path, "ctf-without-interval", seed, level=2.0)
    report = read(drift.study(options(StudyOptions, tmp_path, seeds=3)))
    assert report["verdict"] == "supported"
    assert set(report["numbers"]["curves"]) >= {"ctf", "ctf-without-interval", "real", "real, interval 8"}
    for seed in range(3):  # frozen is as far from real as flickering
        write_run(tmp_path, "ctf", seed, level=0.3)
    report = read(drift.study(options(StudyOptions, tmp_path, seeds=3)))
    assert set(verdicts(report).values()) == {"contradicted"}


def test_drift_is_of_the_last_frames() -> None:
    generated_BT, real_BT = torch.ones(2, 103), torch.ones(2, 103)
    generated_BT[:, -26:], real_BT[:, -27] = 3, 100
    assert drift.log_ratio(generated_BT, real_BT) == pytest.approx(math.log(3))
    assert drift.log_ratio(torch.zeros(2, 103), real_BT) == pytest.approx(math.log(1e-3)), "frozen"


def test_length_judges_both_ways(tmp_path: Path) -> None:
    lost = {f"interpolated_{key}": value for key, value in curves(0.2, class_accuracy=0.1).items()}
    shown = torch.ones(8, 104)
    shown[:, :16] = 0  # up to the trained length, where nothing is judged
    write_run(tmp_path, "ctf", 0, class_accuracy=shown, **lost)
    report = read(length.study(options(LengthOptions, tmp_path, seeds=1)))
    assert (
        report["numbers"]["verdicts"] == {"window": "supported", "interpolate": "contradicted"}
        and report["verdict"] == "contradicted"
    )
    assert report["numbers"]["generated"]["class_accuracy"][0]["61-104"] == 1.0
    assert verdicts(report)["interpolate: sharpness of the last 16 frames near real"] == "supported"


def test_guidance_helps_up_to_a_point(tmp_path: Path) -> None:
    write_run(tmp_path, "ctf-class", 0)
    report = read(guidance.study(options(GuidanceOptions, tmp_path, seeds=1)))
    found = verdicts(report)
    assert report["verdict"] == "supported" and found["guidance 2 better than 1"] == "supported"
    assert found["guidance 9 better than 1"] == "contradicted" and found["guidance 7 better than 9"] == "supported"
    assert "0.9917" in report["statements"][0]["effect"]["method"]  # 0.05 shared by six comparisons
    values = report["numbers"]["scales"]
    assert min(values, key=lambda scale: values[scale][FVD][0]) == "2"


def test_guidance_that_only_harms_is_contradicted(tmp_path: Path) -> None:
    real = real_tensors()["digits3d"]
    harmed = {f"digits3d_guidance_{scale:g}": real + 0.2 * scale for scale in guidance.GUIDANCE_SCALES}
    write_run(tmp_path, "ctf-class", 0, **harmed)
    report = read(guidance.study(options(GuidanceOptions, tmp_path, seeds=1)))
    assert report["verdict"] == "contradicted"


@pytest.mark.parametrize(
    ("module", "kind", "given", "message"),
    [
        (guidance, GuidanceOptions, {"source": "pendulum"}, "no classes"),
        (guidance, GuidanceOptions, {"model": "demo", "count": 10}, "--count 10"),
        (guidance, GuidanceOptions, {"model": "demo", "scales": (2.0, 3.0, 4.0)}, "--scales"),
        (guidance, GuidanceOptions, {"model": "demo", "source": "pendulum"}, "leave --source out"),
        (length, LengthOptions, {"model": "demo", "count": 1}, "--count 1"),
        (length, LengthOptions, {"model": "demo", "frames": 20}, "--frames 20: expected at least 32"),
        (length, LengthOptions, {"frames": 40}, "--frames 40"),
        (length, LengthOptions, {"model": "no such model"}, "no such folder"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    tmp_path: Path, module: Any, kind: type[Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module.study(options(kind, tmp_path, **given))


def test_listing_has_every_result_and_says_what_was_not_run(tmp_path: Path) -> None:
    for name in ("ctf", CTF, "mtf"):
        write_run(tmp_path, name, 0)
    path = ctf_vs_mtf.study(options(StudyOptions, tmp_path, seeds=1))
    assert path is not None
    rows = listing(path.parent)
    table, section = rows[: 2 + len(CLAIMS)], "\n".join(rows[2 + len(CLAIMS) :])
    assert [row.split("`")[1] for row in table[2:]] == list(CLAIMS)
    assert sum("not run" in row for row in table) == len(CLAIMS) - 1 and "digits-tiny-4x2: **" in table[2]
    assert "`python -m studies.ctf_vs_mtf --seeds 1" in section and "short training" in section
    assert section.count(f"| {FVD} of ") == 2 and f"../results/studies/{path.stem}.png" in section


def test_a_foreign_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"format": 2}', json.dumps({"format": 1, "study": "drift"})):
        (tmp_path / "drift-digits.json").write_text(text)
        with pytest.raises(DataError, match="not the result of a study"):
            listing(tmp_path)


def test_the_page_of_the_studies_is_what_the_results_say() -> None:
    """docs/studies.md is written by ``runs/tables.py``."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "studies.md").read_text()
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    assert written == listing(root / "results" / "studies")
