"""A model that draws what it is told scores 1, one that does not listen scores chance, and each deaf ear is found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magi.data.captioned_digits import is_held_out
from magi.data.digit_captions import VALUES
from magi.errors import DataError
from magi.evaluation.protocol.result import read_result
from magi.evaluation.text import samples
from magi.evaluation.text.protocol import chance, score_text
from magi.evaluation.text.report import (
    guidance_table,
    swap_table,
    terminal_rows,
    text_table,
    turn_table,
    write_text_report,
)
from magi.evaluation.text.result import ALL, TextResult, read_text_result, write_text_result
from magi.evaluation.text.samples import TextEvaluation, generate_text_samples
from runs.tables import targets_table
from tests.fakes.caption_reader import Illustrator, LightMeter

PROMPTS, CHANGED = 40, 4


def asked(out: Path, **models: Any) -> TextEvaluation:
    return TextEvaluation(models, out, PROMPTS, (3.0,))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> TextEvaluation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SWAPPED", CHANGED)
        found = asked(
            tmp_path_factory.mktemp("text"),
            obeys=Illustrator(),
            ignores=Illustrator(deaf=tuple(VALUES)),
            half=Illustrator(deaf=("direction",)),
            stubborn=Illustrator(stubborn=True),
        )
        found = replace(found, clip=LightMeter())
        assert generate_text_samples(found)
        found.swaps  # noqa: B018  (drawn while there are few of them)
    return found


@pytest.fixture(scope="module")
def result(evaluation: TextEvaluation) -> TextResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SWAPPED", CHANGED)
        return score_text(evaluation)


def test_an_obeying_model_scores_one(result: TextResult) -> None:
    scores = result.scores["obeys"]
    for title in ("seen", "held-out"):
        assert {name: found.value for name, found in scores.obeyed[title].accuracy.items()} == dict.fromkeys(
            (*VALUES, ALL), 1.0
        )
        assert scores.obeyed[title].class_kept.value == 1
    assert all(target.met for target in scores.targets) and all(found.value == 0 for found in scores.lost.values())
    for name, one in scores.swaps.items():
        assert one.followed.value == 1 and one.pairs == CHANGED
        assert {of: found.value for of, found in one.changed.items()} == {of: float(of == name) for of in VALUES}
    assert all(found.value == 1 for found in scores.empty_prompt.values())


def test_an_ignoring_model_scores_chance(result: TextResult) -> None:
    scores = result.scores["ignores"]
    for title in ("seen", "held-out"):
        for name, found in scores.obeyed[title].accuracy.items():
            assert found.low - 0.05 <= chance()[name] <= found.high + 0.05, (title, name)
    for one in scores.swaps.values():
        assert all(found.value == 0 for found in one.changed.values())
    assert not any(target.met for target in scores.targets[:3])


def test_a_model_deaf_to_one_attribute_is_found_out(result: TextResult) -> None:
    scores = result.scores["half"]
    for name, found in scores.obeyed["seen"].accuracy.items():
        assert (found.value == 1) == (name not in ("direction", ALL))
    assert scores.swaps["direction"].changed["direction"].value == 0
    assert next(target.what for target in scores.targets if not target.met) == "direction"


def test_a_prompt_that_changes_is_read_after_the_change_in_both_ways(result: TextResult) -> None:
    for name, values in (("direction", 8), ("brightness", 2)):
        obeys, stubborn, ignores = (result.scores[model].turns[name] for model in ("obeys", "stubborn", "ignores"))
        for way in ("keep", "observe_anew"):
            assert (obeys[way].followed.value, obeys[way].stayed.value) == (1, 0)
            assert (obeys[way].digit_kept.value, obeys[way].clips) == (1, 13)
            assert ignores[way].followed.low <= 1 / values <= ignores[way].followed.high
        assert obeys["unchanged"].followed.value < 0.2 and obeys["unchanged"].digit_kept.value == 1
        assert (stubborn["keep"].followed.value, stubborn["observe_anew"].followed.value) == (0, 1)
    # Some of the others have come back from the border.
    assert result.scores["obeys"].turns["brightness"]["unchanged"].stayed.value == 1


def test_what_changes_in_mid_video_is_one_attribute_and_a_seen_combination(evaluation: TextEvaluation) -> None:
    for name in ("direction", "brightness"):
        for turn in evaluation.turns(name):
            before = evaluation.asked["seen"][turn.base].attributes
            differ = [of for of in VALUES if getattr(turn.attributes, of) != getattr(before, of)]
            assert differ == [name] and not is_held_out(turn.attributes)
    back = {
        (evaluation.asked["seen"][turn.base].attributes.direction, turn.attributes.direction)
        for turn in evaluation.turns("direction")
    }
    assert {("down", "up"), ("lower left", "upper right")} <= back, "the way back"


def test_a_change_is_asked_of_the_latent_frame_that_has_its_frame(tmp_path: Path) -> None:
    """An autoencoder of 1 + 4 k frames: frame 10 is the second of latent frame 3."""
    model = Illustrator()
    evaluation = replace(asked(tmp_path, one=model), prompts=20)

    def latent_frames(frames: int) -> int:
        if frames % 4 != 1:
            raise ValueError(f"{frames} frames: this autoencoder takes 1 + 4 k frames")
        return frames // 4 + 1

    model.vae.latent_frames = latent_frames  # type: ignore[method-assign]
    assert evaluation.turn_frames == 21
    (one,) = [one for one in evaluation.sets() if one.name == "other direction, keep"]
    ask = samples._prompts(one, range(2), stride=4)
    assert callable(ask) and one.turned is not None and one.prompts is not None
    assert [ask(number) == list(one.turned[:2]) for number in range(6)] == [False] * 3 + [True] * 3


def test_clips_are_scored_against_their_own_prompts(result: TextResult) -> None:
    found = {title: sets["held-out"].value for title, sets in result.clip_scores.items()}
    assert found["real"] == found["obeys"] == 100 and result.card["clip"] == "a light meter"
    assert 20 < found["real, other prompts"] < 80 and 20 < found["ignores"] < 80


def test_no_prompt_scores_chance_and_floors_are_near_one(result: TextResult) -> None:
    unprompted = result.scores["obeys"].obeyed["no prompt"].accuracy
    assert unprompted["digit"].value < 0.4 and unprompted["direction"].value < 0.4
    assert set(result.floors) == {"real", "vae"}
    for sets in result.floors.values():
        assert all(found.value >= 0.95 for one in sets.values() for found in one.accuracy.values())


def test_each_clip_is_asked_for_as_its_set_says(tmp_path: Path) -> None:
    model = Illustrator()
    evaluation = replace(asked(tmp_path, one=model), prompts=4)
    assert generate_text_samples(evaluation)
    by_prompt = {tuple(call["prompt"] or ()): call for call in model.asked if call["frames"] != 20}
    seen = tuple(clip.prompt for clip in evaluation.asked["seen"])
    ways = [{"prompt_change": way} for way in ("keep", "observe_anew")] * 2
    assert [call["sampling"] for call in model.asked] == [None] * 5 + [{"guidance": 3.0}, None, *ways]
    assert {tuple(call["seeds"]) for call in model.asked[6:]} == {tuple(model.asked[0]["seeds"][:2])}
    unprompted = by_prompt[()]
    first = next(call for call in model.asked if call["prompt"] is not None and tuple(call["prompt"]) == seen)
    assert first["seeds"] == unprompted["seeds"] == by_prompt[("", "")]["seeds"]
    held = by_prompt[tuple(clip.prompt for clip in evaluation.asked["held-out"])]
    assert not set(held["seeds"]) & set(first["seeds"])
    changed = [call for call in model.asked if len(call["seeds"]) == 12]
    assert [call["seeds"] for call in changed] == [[first["seeds"][swap.base] for swap in evaluation.swaps]]
    calls = len(model.asked)
    assert generate_text_samples(evaluation) and len(model.asked) == calls


def test_workers_share_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "SWAPPED", 1)
    monkeypatch.setattr(samples, "WITHOUT", 1)
    evaluation = replace(asked(tmp_path, one=Illustrator()), prompts=66)
    assert not generate_text_samples(evaluation, (0, 2))
    assert generate_text_samples(evaluation, (1, 2))


def test_result_goes_to_json_and_back_and_into_page_and_table(
    evaluation: TextEvaluation, result: TextResult, tmp_path: Path
) -> None:
    write_text_result(result, tmp_path / "result.json")
    assert read_text_result(tmp_path) == result
    files = write_text_report(evaluation, result)
    page = (evaluation.out / "report.html").read_text()
    assert files == [*(f"{name}-prompts.png" for name in ("obeys", "ignores", "half", "stubborn")), "report.html"]
    assert all((evaluation.out / file).is_file() for file in files)
    assert "http" not in page and page.count("<img") == 4
    for text in (
        "obeys, seen",
        "half, held-out",
        "Targets of ignores",
        "0.85",
        "mid-video, stubborn",
        "observe_anew",
        "a light meter",
    ):
        assert text in page
    table = text_table(result)
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "obeys: all targets are met." in table and "ignores: targets missed: digit at least 0.9;" in table
    assert any(line.startswith("obeys: 6 of 6 targets met") for line in terminal_rows(result))


def test_tables_of_a_result_have_a_row_a_target_and_an_attribute(result: TextResult) -> None:
    others = [read_result(Path(__file__).parents[3] / "results" / f"{name}.json") for name in ("digits", "world")]
    lines = targets_table(others, result).splitlines()
    assert "| `obeys` | digit | 1 | 1 | at least 0.9 |" in lines
    assert f"Of text on {PROMPTS} prompts, from nothing." in lines[-1]
    assert [line.split("|")[2].strip() for line in lines if "`half`" in line] == [
        target.what for target in result.scores["half"].targets
    ]
    rows = swap_table(result.scores["obeys"]).splitlines()
    assert rows[2] == "| digit | 1.000 | 1.000 | 0.000 | 0.000 | 0.000 | 0.000 | 0.000 |"
    assert [row.split("|")[1].strip() for row in rows[2:]] == list(VALUES)
    assert turn_table(result.scores["stubborn"]).splitlines()[3:5] == [
        "| direction | keep | 13 | 0.000 | 1.000 | 1.000 |",
        "| direction | observe_anew | 13 | 1.000 | 0.000 | 1.000 |",
    ]
    # The model's own guidance is 1.
    assert guidance_table(result.scores["obeys"]).splitlines()[2:] == [
        f"| {scale} |" + " 1.000 |" * 8 for scale in (1, 3)
    ]


def test_a_result_changed_by_hand_is_refused(result: TextResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text_result(result, path)
    values = json.loads(path.read_text())
    values["card"]["prompts"] += 2
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="does not have the hash written beside it"):
        read_text_result(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a result of 'magi evaluate text'"):
        read_text_result(path)
    with pytest.raises(ValueError, match="no such result"):
        read_text_result(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 3}, "prompts 3: expected an even number"),
        ({"prompts": 0}, "prompts 0: expected an even number"),
        ({"prompts": 2, "clip": LightMeter()}, "prompts 2: a CLIP score has an interval, for which 4 are needed"),
        ({"frames": 8}, "frames 8: attributes are read from 10"),
        ({"models": {"vae": Illustrator()}}, "a model cannot be called 'vae'"),
        ({"models": {"plain": Illustrator(text=False)}}, "plain: this model has no text"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(asked(tmp_path, one=Illustrator()), **changes)
