"""How well models of captioned digits obey their prompts, attribute by attribute, read from pixels by oracles.

Beside every model stand chance, the real clips of the same prompts and the autoencoder's reconstructions of them, all
measured alike. Knows no command line and no pictures.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from magi.data.digit_captions import VALUES, DigitAttributes
from magi.evaluation.metrics.bootstrap import Estimate, share_difference, share_interval, student_interval
from magi.evaluation.moving_digits.classifier import DigitClassifier
from magi.evaluation.protocol.card import hash_of, versions
from magi.evaluation.protocol.evaluation import REAL, RECONSTRUCTED
from magi.evaluation.protocol.samples import describe
from magi.evaluation.text.clip_score import ImageTextScore
from magi.evaluation.text.oracles import READ_FRAMES, AttributeReadings, read_attributes
from magi.evaluation.text.prompts import AskedClip
from magi.evaluation.text.result import (
    ALL,
    Accuracy,
    Obeyed,
    SwapScores,
    TextResult,
    TextScores,
    TextTarget,
    TurnScores,
)
from magi.evaluation.text.samples import (
    SETS,
    TURNS,
    UNCHANGED,
    WAYS,
    TextEvaluation,
    guidance_title,
    read_clips,
    turn_title,
)
from magi.sampling.pipeline import MagiPipeline
from magi.weights import weights_hash

FORMAT = 2
_AT_A_TIME = 64


def score_text(evaluation: TextEvaluation) -> TextResult:
    """Read every clip and compare; ``DataError`` where clips are missing."""
    classifier = DigitClassifier.load()
    card, floors = _card(evaluation, classifier), _floors(evaluation, classifier)
    return TextResult(
        card,
        hash_of(card),
        {name: describe(model) for name, model in evaluation.models.items()},
        chance(),
        floors,
        {
            name: _scores(evaluation, name, floors[_autoencoder_title(evaluation, name)], classifier)
            for name in evaluation.models
        },
        {} if evaluation.clip is None else _clip_scores(evaluation, evaluation.clip),
    )


def _clip_scores(evaluation: TextEvaluation, clip: ImageTextScore) -> dict[str, dict[str, Estimate]]:
    """Of the models' clips and of real ones, and of these against the prompts of their neighbours."""
    found: dict[str, dict[str, Estimate]] = {}
    for number, name in enumerate(SETS):
        evaluation.on_progress("CLIP scores", number, len(SETS))
        asked, one = evaluation.asked[name], next(one for one in evaluation.sets() if one.name == name)
        prompts, real_BTHWC = [each.prompt for each in asked], np.stack([each.real_THWC for each in asked])
        series = {REAL: (real_BTHWC, prompts), f"{REAL}, other prompts": (real_BTHWC, [*prompts[1:], prompts[0]])}
        series |= {title: (read_clips(evaluation, title, one), prompts) for title in evaluation.models}
        for title, given in series.items():
            found.setdefault(title, {})[name] = student_interval(clip.scores(*given).tolist())
    evaluation.on_progress("CLIP scores", len(SETS), len(SETS))
    return found


def _floors(evaluation: TextEvaluation, classifier: DigitClassifier) -> dict[str, dict[str, Obeyed]]:
    """Of the real clips of the prompts, and of each autoencoder's reconstructions of them."""
    floors: dict[str, dict[str, Obeyed]] = {REAL: {}}
    autoencoders = {_autoencoder_title(evaluation, name): model for name, model in evaluation.models.items()}
    for number, name in enumerate(SETS):
        evaluation.on_progress("reading real clips", number, len(SETS))
        asked = evaluation.asked[name]
        real_BTHWC = np.stack([clip.real_THWC for clip in asked])
        floors[REAL][name] = _obeyed(_read(real_BTHWC, classifier), asked)
        for title, model in autoencoders.items():
            made_BTHWC = _reconstructed(model, real_BTHWC)
            floors.setdefault(title, {})[name] = _obeyed(_read(made_BTHWC, classifier), asked)
    evaluation.on_progress("reading real clips", len(SETS), len(SETS))
    return floors


def chance() -> dict[str, float]:
    """What drawing lots would reach."""
    each = {name: round(1 / len(values), 4) for name, values in VALUES.items()}
    return each | {ALL: round(1 / math.prod(len(values) for values in VALUES.values()), 6)}


def _scores(
    evaluation: TextEvaluation, name: str, floor: Mapping[str, Obeyed], classifier: DigitClassifier
) -> TextScores:
    sets, readings = {one.name: one for one in evaluation.sets()}, {}
    after = {}
    for number, (title, one) in enumerate(sets.items()):
        evaluation.on_progress(f"{name}: reading clips", number, len(sets))
        video_BTHWC = read_clips(evaluation, name, one)
        readings[title] = _read(video_BTHWC, classifier)
        if title == UNCHANGED or one.turned is not None:
            after[title] = _read(video_BTHWC[:, READ_FRAMES:], classifier)
    evaluation.on_progress(f"{name}: reading clips", len(sets), len(sets))
    seen = evaluation.asked["seen"]
    obeyed: dict[str, Obeyed] = {title: _obeyed(readings[title], evaluation.asked[title]) for title in SETS}
    obeyed["no prompt"] = _obeyed(readings["no prompt"], seen)
    return TextScores(
        obeyed=obeyed,
        lost=_lost(obeyed),
        swaps=_swaps(evaluation, readings["seen"], readings["swaps"]),
        empty_prompt=_agreement(readings["empty prompt"], readings["no prompt"]),
        guidance=_guidance(evaluation, name, readings),
        targets=_targets(obeyed, floor),
        turns={
            of: {
                way: _turn(evaluation, of, readings[turn_title(of, way)], after[turn_title(of, way)])
                for way in (UNCHANGED, *WAYS)
            }
            for of in TURNS
        },
    )


def _guidance(evaluation: TextEvaluation, name: str, readings: Mapping[str, AttributeReadings]) -> dict[str, Obeyed]:
    """By scale; the model's own, of the same prompts, among those that are tried."""
    found = {scale: readings[guidance_title(scale)] for scale in evaluation.guidance}
    if found:
        clips = len(next(iter(found.values())))
        found.setdefault(evaluation.models[name].config.sampling.guidance, readings["seen"].first(clips))
    return {f"{scale:g}": _obeyed(found[scale], evaluation.asked["seen"]) for scale in sorted(found)}


def _lost(obeyed: Mapping[str, Obeyed]) -> Accuracy:
    """The accuracy in seen combinations less that in held-out ones."""
    seen, held_out = obeyed["seen"].accuracy, obeyed["held-out"].accuracy
    return {of: share_difference(seen[of], held_out[of]) for of in (*VALUES, ALL)}


def _targets(obeyed: Mapping[str, Obeyed], floor: Mapping[str, Obeyed]) -> tuple[TextTarget, ...]:
    figures: tuple[tuple[str, float | None, float | None, Callable[[Mapping[str, Obeyed]], Estimate]], ...] = (
        ("digit", 0.90, None, lambda sets: sets["seen"].accuracy["digit"]),
        ("direction", 0.85, None, lambda sets: sets["seen"].accuracy["direction"]),
        ("speed", 0.80, None, lambda sets: sets["seen"].accuracy["speed"]),
        ("digit lost in held-out combinations", None, 0.05, lambda sets: _lost(sets)["digit"]),
        ("direction lost in held-out combinations", None, 0.05, lambda sets: _lost(sets)["direction"]),
        ("class kept to the last frame", 0.95, None, lambda sets: sets["seen"].class_kept),
    )
    return tuple(TextTarget(what, low, high, of(floor).value, of(obeyed).value) for what, low, high, of in figures)


def _read(video_BTHWC: NDArray[np.uint8], classifier: DigitClassifier) -> AttributeReadings:
    """A part at a time, for memory."""
    parts = [
        read_attributes(video_BTHWC[start : start + _AT_A_TIME], classifier)
        for start in range(0, len(video_BTHWC), _AT_A_TIME)
    ]
    values = {name: tuple(value for part in parts for value in part.values[name]) for name in VALUES}
    return AttributeReadings(values, tuple(digit for part in parts for digit in part.last_digit))


def _obeyed(readings: AttributeReadings, asked: Sequence[AskedClip]) -> Obeyed:
    """The readings against what was asked of as many clips, the first."""
    wanted = [clip.attributes for clip in asked[: len(readings)]]
    hits = {name: _hits(readings, name, wanted) for name in VALUES}
    hits[ALL] = np.logical_and.reduce(list(hits.values()))
    kept = [
        digit is not None and digit == last
        for digit, last in zip(readings.values["digit"], readings.last_digit, strict=True)
    ]
    return Obeyed(len(readings), {name: _share(of) for name, of in hits.items()}, _share(kept))


def _hits(readings: AttributeReadings, name: str, wanted: Sequence[DigitAttributes]) -> NDArray[np.bool_]:
    pairs = zip(readings.values[name], wanted, strict=True)
    return np.array([value == getattr(attributes, name) for value, attributes in pairs])


def _share(hits: Sequence[bool] | NDArray[np.bool_]) -> Estimate:
    return share_interval(int(np.sum(hits)), len(hits))


def _swaps(evaluation: TextEvaluation, before: AttributeReadings, after: AttributeReadings) -> dict[str, SwapScores]:
    scores = {}
    for name in VALUES:
        places = [place for place, swap in enumerate(evaluation.swaps) if swap.name == name]
        pairs = [(evaluation.swaps[place].base, place) for place in places]
        new = [getattr(evaluation.swaps[place].attributes, name) for place in places]
        followed = [after.values[name][place] == value for place, value in zip(places, new, strict=True)]
        changed = {
            of: _share([before.values[of][base] != after.values[of][place] for base, place in pairs]) for of in VALUES
        }
        scores[name] = SwapScores(len(pairs), _share(followed), changed)
    return scores


def _turn(evaluation: TextEvaluation, name: str, before: AttributeReadings, after: AttributeReadings) -> TurnScores:
    turned = evaluation.turns(name)
    old = [evaluation.asked["seen"][turn.base].attributes for turn in turned]
    kept = [
        digit is not None and digit == then
        for digit, then in zip(before.values["digit"], after.values["digit"], strict=True)
    ]
    new = [turn.attributes for turn in turned]
    return TurnScores(len(turned), _share(_hits(after, name, new)), _share(_hits(after, name, old)), _share(kept))


def _agreement(one: AttributeReadings, other: AttributeReadings) -> Accuracy:
    """The share of the clips of ``one`` that read as those of ``other`` with the same number."""
    return {
        name: _share([a == b for a, b in zip(one.values[name], other.values[name][: len(one)], strict=True)])
        for name in VALUES
    }


def _autoencoder_title(evaluation: TextEvaluation, name: str) -> str:
    """What a model's autoencoder is called: by the first model that has it, where there are several."""
    ids = {title: model.vae.id for title, model in evaluation.models.items()}
    first = next(title for title in ids if ids[title] == ids[name])
    return RECONSTRUCTED if len(set(ids.values())) == 1 else f"{RECONSTRUCTED} of {first}"


def _reconstructed(model: MagiPipeline, video_BTHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    def parts() -> Iterator[torch.Tensor]:
        device = next(model.model.parameters()).device
        for start in range(0, len(video_BTHWC), 8):
            part_BTHWC = torch.from_numpy(video_BTHWC[start : start + 8]).to(device)
            yield model.vae.decode(model.vae.encode(part_BTHWC)).cpu()

    made_BTHWC: NDArray[np.uint8] = torch.cat(list(parts())).numpy()
    return made_BTHWC


def _card(evaluation: TextEvaluation, classifier: DigitClassifier) -> dict[str, object]:
    """What two results must share to be compared."""
    prompts = [(one.prompts, one.turned) for one in evaluation.sets()]
    return {
        "format": FORMAT,
        "prompts": evaluation.prompts,
        "prompts_sha256": hash_of(prompts),
        "frames": evaluation.frames,
        "read_frames": READ_FRAMES,
        "size": evaluation.size,
        "seed": evaluation.seed,
        "guidance": list(evaluation.guidance),
        "clip": None if evaluation.clip is None else evaluation.clip.id,
        "classifier_sha256": weights_hash(classifier.state_dict()),
        "versions": versions(),
    }
