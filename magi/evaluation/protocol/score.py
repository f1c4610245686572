"""From a protocol, real videos and models to a result: scores with what they must be read against.

Beside every score stand its interval, the floor (real clips against other real clips, the same number) and what theory
expects of it, what the autoencoder alone costs, the limit at infinitely many clips, and how real clips fare that are
spoilt on purpose: a measure that does not see that is blind to motion. Distances are of statistics merged from chunk to
chunk; only the bootstrap holds all features. The result is a pure function of its card, the models and the seed; an
evaluation that was stopped goes on where it was. Knows no options, no pictures.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.data.clips import clip_span
from magi.evaluation.metrics.frechet import (
    Estimate,
    distance_of,
    expected_floor,
    extrapolated_distance,
    frechet_distance,
    over_folds,
    with_bootstrap,
)
from magi.evaluation.metrics.temporal_curves import CURVES, INTERVALS, band, curves_to_json, drift_ratio
from magi.evaluation.moving_digits.predictions import Progress, describe
from magi.evaluation.protocol.card import ProtocolCard, hash_of, make_card, score_name
from magi.evaluation.protocol.clip_table import ClipRow, ClipTable, data_hash
from magi.evaluation.protocol.features import FEATURES, IMAGES, Instruments, Measured, Pairs, measure_set
from magi.evaluation.protocol.motion_controls import spoilt_sets
from magi.evaluation.protocol.protocols import EvaluationProtocol
from magi.evaluation.protocol.real_clips import RealClips, to_score_size
from magi.evaluation.protocol.samples import SamplePlan, generate_samples, reconstruct, sample_plan
from magi.files import atomic_write
from magi.sampling.pipeline import MagiPipeline

RESULT_FILE, TABLE_FILE = "result.json", "clips.csv"
_DRIFT_CLIPS = 1024  # as in the paper
_RESAMPLES = 100


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation needs besides the models; ``out`` is where samples, features and the result lie."""

    protocol: EvaluationProtocol
    overrides: Mapping[str, Any]
    instruments: Instruments
    clips: RealClips
    table: ClipTable
    out: Path
    seed: int = 0
    batch: int = 8

    @property
    def card(self) -> ProtocolCard:
        """The protocol card."""
        index = self.clips.index
        data = {
            "videos": len(index.videos),
            "skipped": index.skipped,
            "too_short": sum(frames < self._span for frames in self.clips.lengths.values()),
            "videos_sha256": data_hash(index),
            "table_sha256": self.table.hash,
            "real_videos": len(self.table.videos("real")),
            "floor_videos": len(self.table.videos("floor")),
            "floor_clips_of_real_videos": self.table.shared_clips,
        }
        return make_card(self.protocol, self.overrides, self.instruments.network, data, self.seed)

    @property
    def _span(self) -> int:
        return clip_span(self.protocol.frames, self.protocol.interval)

    def rows(self, name: str) -> list[ClipRow]:
        """The rows of a set, fold after fold."""
        return [row for fold in range(self.protocol.folds) for row in self.table.of(name, fold)]

    @property
    def continued(self) -> list[ClipRow]:
        """The rows whose contexts and labels the samples have, sample k those of row k."""
        return self.rows(self.protocol.context_set)

    def plan(self, name: str, model: MagiPipeline) -> SamplePlan:
        """Where a model's samples are to lie."""
        folder = self.out / "samples" / name
        return sample_plan(model, self.protocol, self.continued, self.table.hash, self.seed, folder)


def check_evaluation(evaluation: Evaluation, models: Mapping[str, MagiPipeline]) -> None:
    """Refuse, with a ``ValueError`` and before anything is made, what cannot be scored."""
    protocol, network = evaluation.protocol, evaluation.instruments.network
    if protocol.frames < network.minimum_frames:
        raise ValueError(
            f"{protocol.name}: clips of {protocol.frames} frames, {network.name} needs at least "
            f"{network.minimum_frames}; use longer clips"
        )
    if protocol.count <= network.dimension and "singular" not in evaluation.overrides:
        raise ValueError(
            f"{protocol.count} clips are no more than the {network.dimension} dimensions of {network.name}: the "
            f"covariance is singular and the score mostly bias; use at least {network.dimension + 1}"
        )
    for name, model in models.items():
        data = model.config.data
        if min(data.height, data.width) < protocol.score_size:
            raise ValueError(
                f"{name} makes {data.height} x {data.width} pixels, {protocol.name} scores at {protocol.score_size} x "
                f"{protocol.score_size}; use a model of that size, or override with --size, which the score's name says"
            )
        model.vae.latent_frames(protocol.frames)  # raises where the autoencoder does not take clips of this length


def generate(
    evaluation: Evaluation, models: Mapping[str, MagiPipeline], worker: tuple[int, int], tell: Progress
) -> bool:
    """Make this worker's samples of every model; whether all samples of all models are there now."""
    check_evaluation(evaluation, models)
    for name, model in models.items():
        generate_samples(
            model,
            evaluation.protocol,
            evaluation.clips,
            evaluation.continued,
            evaluation.plan(name, model),
            evaluation.seed,
            evaluation.batch,
            worker,
            lambda what, done, total, name=name: tell(f"{name}: {what}", done, total),  # type: ignore[misc]
        )
    return not any(evaluation.plan(name, model).missing() for name, model in models.items())


def score(evaluation: Evaluation, models: Mapping[str, MagiPipeline], tell: Progress) -> dict[str, Any]:
    """Score what ``generate`` made; write and return the result. ``DataError`` where samples are missing."""
    check_evaluation(evaluation, models)
    scorer = _Scorer(evaluation, tell)
    result = {
        "score_name": score_name(evaluation.protocol, evaluation.instruments.network, evaluation.overrides),
        "card": evaluation.card.values,
        "card_sha256": evaluation.card.hash,
        "beside": evaluation.instruments.described(),
        "real": scorer.real(),
        "models": {name: scorer.model(name, model) for name, model in models.items()},
    }
    with atomic_write(evaluation.out / RESULT_FILE) as beside:
        beside.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return result


class _Scorer:
    """Measures sets of clips and puts their distances together."""

    def __init__(self, evaluation: Evaluation, tell: Progress) -> None:
        self.evaluation, self.tell = evaluation, tell
        self.protocol, self.clips = evaluation.protocol, evaluation.clips
        depends_on = [evaluation.card.hash, evaluation.instruments.described()]
        self.folder = evaluation.out / "features" / hash_of(depends_on)[:16]
        self.real_set = self._measured("real", self._rows_reader("real"))
        self._reconstructed: dict[str, Measured] = {}

    def real(self) -> dict[str, Any]:
        """Floor, battery and curves of the real clips."""
        floor = self._measured("floor", self._rows_reader("floor"))
        expected: dict[str, float] = {}
        if self.protocol.count > self.evaluation.instruments.network.dimension:
            covariance_DD = self.real_set.statistics(0, self.protocol.count).covariance_DD
            expected["floor_expected"] = _short(expected_floor(covariance_DD, self.protocol.count, self.protocol.count))
        return {
            "floor": _rounded(self._estimate(floor)),
            **expected,
            "battery": self._battery(floor),
            "curves": self._curves(self.real_set),
            "drift": self._drift(),
            **self._frame_distances("frame_fid_floor", floor),
        }

    def model(self, name: str, model: MagiPipeline) -> dict[str, Any]:
        """Score, reconstruction score, frame metrics and curves of a model."""
        plan = self.evaluation.plan(name, model)
        made = self._measured(f"{name}-{plan.key[:12]}", self._samples_reader(plan), name)
        reconstructed = self._reconstruction(model)
        found: dict[str, Any] = {
            "score": _rounded(self._estimate(made)),
            "vae_reconstruction": _rounded(self._estimate(reconstructed)),
            "model": describe(model),
            "samples_key": plan.key,
            "curves": self._curves(made),
            "drift_ratio": self._drift_ratio(made),
            "frames": self._frame_metrics(made),
            **self._frame_distances("frame_fid", made),
        }
        features_ND, real_ND = made.values(FEATURES), self.real_set.values(FEATURES)
        if len(features_ND) // 3 > features_ND.shape[1]:
            found["score_at_infinity"] = _short(extrapolated_distance(real_ND, features_ND))
        return found

    def _estimate(self, other: Measured) -> Estimate:
        """Distance of a set from the real one: over folds, or with a bootstrap interval where there is one fold."""
        folds, count = self.protocol.folds, self.protocol.count

        def of_fold(fold: int) -> float:
            first, last = fold * count, (fold + 1) * count
            real, made = self.real_set.statistics(first, last), other.statistics(first, last)
            return frechet_distance(real, made, allow_singular=self._singular)

        if folds > 1:
            return over_folds(of_fold, folds)
        return with_bootstrap(of_fold(0), self.real_set.values(FEATURES), other.values(FEATURES), _RESAMPLES)

    def _battery(self, floor: Measured) -> dict[str, Any]:
        """Scores of real clips with a planted fault, each beside the floor of the same clips, or why it was not run."""
        fewest = 1 if self._singular else self.evaluation.instruments.network.dimension + 1
        rows = self.evaluation.table.of("floor", 0)
        found: dict[str, Any] = {}
        for name, spoilt in spoilt_sets(self.clips, rows, self.evaluation.batch, fewest).items():
            if isinstance(spoilt, str):
                found[name] = {"not_run": spoilt}
                continue
            count = len(spoilt.numbers)
            found_ND = self._measured(name, spoilt.read, clips=count).values(FEATURES)
            unspoilt_ND = floor.values(FEATURES)[list(spoilt.numbers)]
            score, bottom = (self._of_some(features_ND, count) for features_ND in (found_ND, unspoilt_ND))
            found[name] = {
                **_rounded(score),
                "clips": count,
                "floor": _rounded(bottom),
                "blind": score.value <= bottom.high,
            }
        return found

    def _of_some(self, features_ND: Tensor, count: int) -> Estimate:
        """Distance of some clips from the first ``count`` real ones."""
        real_ND = self.real_set.values(FEATURES)[:count]
        value = distance_of(real_ND, features_ND, allow_singular=self._singular)
        return with_bootstrap(value, real_ND, features_ND, _RESAMPLES)

    @property
    def _singular(self) -> bool:
        return "singular" in self.evaluation.overrides

    def _long_enough(self, rows: list[ClipRow], interval: int) -> list[ClipRow]:
        lengths = self.clips.lengths
        return [row for row in rows if lengths[row.video] >= clip_span(self.protocol.frames, interval)]

    def _drift(self) -> dict[str, Any]:
        """Curves of the change between adjacent frames for real clips at several intervals (Figure 8)."""
        curves = {}
        for interval in INTERVALS:
            rows = self._long_enough(self.evaluation.rows("real")[:_DRIFT_CLIPS], interval)
            if len(rows) > 1:
                values = [
                    CURVES["adjacent_l2"](video)
                    for video in self.clips.batches(rows, self.evaluation.batch, interval=interval)
                ]
                curves[str(interval)] = band(torch.cat(values), self.evaluation.seed)
        return curves_to_json(curves)

    def _drift_ratio(self, made: Measured) -> dict[str, Any]:
        """Change between adjacent frames over that of the real clips, at every frame: 1 is no drift."""
        ratio = drift_ratio(made.values("adjacent_l2"), self.real_set.values("adjacent_l2"), self.evaluation.seed)
        return curves_to_json({"adjacent_l2": ratio})["adjacent_l2"]

    def _curves(self, found: Measured) -> dict[str, Any]:
        return curves_to_json({name: band(found.values(name), self.evaluation.seed) for name in CURVES})

    def _frame_metrics(self, made: Measured) -> dict[str, Any]:
        """PSNR, SSIM and learned distances of the predicted frames: mean over frames and clips, and at every frame."""
        metrics: dict[str, Any] = {}
        first = self.protocol.context_frames
        for name in made.names():
            if name not in CURVES and name not in (FEATURES, IMAGES):
                values_BT = made.values(name).double()
                exact = int(values_BT.isinf().sum())
                finite_BT = torch.where(values_BT.isinf(), torch.nan, values_BT)
                per_frame = [None if value != value else round(value, 4) for value in finite_BT.nanmean(0).tolist()]
                mean = float(finite_BT.nanmean(0).nanmean())
                metrics[name] = {
                    "mean": round(mean, 4) if mean == mean else None,
                    "first_frame": first + 1,
                    "per_frame": per_frame,
                    "exact_frames": exact,
                }
        return metrics

    def _frame_distances(self, name: str, other: Measured) -> dict[str, Any]:
        """Frechet distance of frame t of all clips for every t; nothing without an image network."""
        if IMAGES not in self.real_set.names():
            return {}
        return {
            name: [
                round(distance_of(self.real_set.frame_features(t), other.frame_features(t), allow_singular=True), 4)
                for t in range(self.protocol.frames)
            ]
        }

    def _reconstruction(self, model: MagiPipeline) -> Measured:
        """The floor clips through the model's autoencoder: what a perfect model with it would score."""
        if model.vae.id not in self._reconstructed:
            rows, size = self.evaluation.rows("floor"), (model.config.data.height, model.config.data.width)

            def read(first: int, last: int) -> Pairs:
                for start in range(first, last, self.evaluation.batch):
                    part = rows[start : min(start + self.evaluation.batch, last)]
                    video_BTHWC = torch.stack([self.clips.read(row, size) for row in part])
                    yield to_score_size(reconstruct(model, video_BTHWC), self.protocol), None

            name = f"vae-{hashlib.sha256(model.vae.id.encode()).hexdigest()[:12]}"
            self._reconstructed[model.vae.id] = self._measured(name, read, "autoencoder")
        return self._reconstructed[model.vae.id]

    def _rows_reader(self, name: str) -> Callable[[int, int], Pairs]:
        rows = self.evaluation.rows(name)

        def read(first: int, last: int) -> Pairs:
            yield from ((video, None) for video in self.clips.batches(rows[first:last], self.evaluation.batch))

        return read

    def _samples_reader(self, plan: SamplePlan) -> Callable[[int, int], Pairs]:
        rows = self.evaluation.continued

        def read(first: int, last: int) -> Pairs:
            made = plan.read(first, last, self.evaluation.batch)
            if not self.protocol.context_frames:
                yield from ((to_score_size(video, self.protocol), None) for video in made)
                return
            real: Iterator[Tensor] = self.clips.batches(rows[first:last], self.evaluation.batch)
            for video_BTHWC, real_BTHWC in zip(made, real, strict=True):
                yield to_score_size(video_BTHWC, self.protocol), real_BTHWC

        return read

    def _measured(
        self, name: str, read: Callable[[int, int], Pairs], what: str = "", clips: int | None = None
    ) -> Measured:
        return measure_set(
            self.evaluation.instruments,
            self.folder,
            name,
            self.protocol.count * self.protocol.folds if clips is None else clips,
            read,
            lambda done, total: self.tell(f"measuring {what or name.replace('_', ' ')}", done, total),
        )


def _rounded(estimate: Estimate) -> dict[str, float]:
    return {key: _short(value) for key, value in asdict(estimate).items()}


def _short(value: float) -> float:
    return float(f"{value:.8g}")
