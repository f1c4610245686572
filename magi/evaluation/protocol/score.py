"""From generated samples to a result: Frechet distances with what they must be read against, or ground truth.

Beside every distance stand its interval, the floor (real clips against other real clips, the same number) and the floor
that theory expects, what the autoencoder alone costs, the limit at infinitely many clips, and motion sanity checks.
Distances are of statistics merged from chunk to chunk; only the bootstrap holds all features. The result is a pure
function of its card, the models and the seed; an evaluation that was stopped goes on where it was. Knows no options and
no pictures.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from magi.data.clips import clip_span
from magi.evaluation.metrics.bootstrap import Curve, Estimate, mean_curve, ratio_curve, student_interval
from magi.evaluation.metrics.frechet import (
    distance_of,
    expected_floor,
    extrapolated_distance,
    frechet_distance,
    with_bootstrap,
)
from magi.evaluation.metrics.temporal_curves import CURVES, INTERVALS
from magi.evaluation.moving_digits.protocol import score_digits
from magi.evaluation.protocol.card import hash_of, score_name
from magi.evaluation.protocol.evaluation import Evaluation
from magi.evaluation.protocol.features import FEATURES, IMAGES, FeatureSet, Pairs, feature_set
from magi.evaluation.protocol.motion_controls import CorruptedSet, corrupted_sets
from magi.evaluation.protocol.result import (
    RESULT_FILE,
    EvaluationResult,
    FrameMetric,
    FrechetScores,
    GroundTruthScores,
    ModelScores,
    MotionControl,
    RealScores,
    write_result,
)
from magi.evaluation.protocol.samples import SamplePlan, describe, read_samples, sample_plan
from magi.evaluation.worlds.protocol import score_world
from magi.evaluation.worlds.recorded_game import score_game
from magi.sampling.pipeline import MagiPipeline

_DRIFT_CLIPS = 1024  # as in the paper
_RESAMPLES = 100

Read = Callable[[int, int], Pairs]


def score(evaluation: Evaluation) -> EvaluationResult:
    """Score the generated samples; write and return the result. ``DataError`` where samples are missing."""
    ground_truth = evaluation.protocol.ground_truth
    result = EvaluationResult(
        score_name=score_name(evaluation.protocol, evaluation.metrics.described(), evaluation.overrides),
        card=evaluation.card.values,
        card_sha256=evaluation.card.hash,
        other_networks=evaluation.metrics.other_networks(),
        models={name: describe(model) for name, model in evaluation.models.items()},
        frechet=None if ground_truth else _FrechetScorer(evaluation).scores(),
        ground_truth=_ground_truth(evaluation) if ground_truth else None,
    )
    write_result(result, evaluation.out / RESULT_FILE)
    return result


def _ground_truth(evaluation: Evaluation) -> GroundTruthScores:
    scorers = {"world_oracle": score_world, "inverse_dynamics": score_game, "digit_classifier": score_digits}
    return scorers[evaluation.protocol.network](evaluation)


class _FrechetScorer:
    """Measures sets of clips and puts their distances together."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.protocol = evaluation, evaluation.protocol
        self.dimension = evaluation.metrics.feature_network.dimension
        depends_on = [evaluation.card.hash, evaluation.metrics.other_networks()]
        self.folder = evaluation.out / "features" / hash_of(depends_on)[:16]
        self.real_set = self._features("real", lambda *part: zip(evaluation.real("real", *part)), images=True)
        self._reconstructed: dict[str, FeatureSet] = {}

    def scores(self) -> FrechetScores:
        """Scores of the real clips and of every model."""
        real = self._real()
        return FrechetScores(real, {name: self._model(name, model) for name, model in self.evaluation.models.items()})

    def _real(self) -> RealScores:
        """Floor, motion sanity checks and curves of the real clips."""
        floor = self._features("floor", lambda *part: zip(self.evaluation.real("floor", *part)), images=True)
        count, expected = self.protocol.count, None
        if count > self.dimension:
            covariance_DD = self.real_set.statistics(0, count).covariance_DD
            expected = _short(expected_floor(covariance_DD, count, count))
        return RealScores(
            floor=self._estimate(floor),
            floor_expected=expected,
            motion_controls=self._motion_controls(floor),
            curves=self._curves(self.real_set),
            adjacent_l2=self._adjacent_l2(),
            frame_fid_floor=self._frame_fid(floor),
        )

    def _model(self, name: str, model: MagiPipeline) -> ModelScores:
        """Score, reconstruction score, frame metrics and curves of a model."""
        plan = sample_plan(self.evaluation, name)
        generated = self._features(f"{name}-{plan.key[:12]}", self._pairs(plan), name, images=True)
        features_ND, real_ND = generated.values(FEATURES), self.real_set.values(FEATURES)
        enough = len(features_ND) // 3 > features_ND.shape[1]
        ratio = ratio_curve(generated.values("adjacent_l2"), self.real_set.values("adjacent_l2"), self.evaluation.seed)
        return ModelScores(
            score=self._estimate(generated),
            score_at_infinity=_short(extrapolated_distance(real_ND, features_ND)) if enough else None,
            vae_reconstruction=self._estimate(self._reconstruction(model)),
            samples_key=plan.key,
            curves=self._curves(generated),
            drift_ratio=ratio,
            frames=self._frame_metrics(generated),
            frame_fid=self._frame_fid(generated),
        )

    def _estimate(self, other: FeatureSet) -> Estimate:
        """Distance of a set from the real one: over folds, or with a bootstrap interval where there is one fold."""
        folds, count = self.protocol.folds, self.protocol.count

        def of_fold(fold: int) -> float:
            first, last = fold * count, (fold + 1) * count
            real, generated = self.real_set.statistics(first, last), other.statistics(first, last)
            return frechet_distance(real, generated, allow_singular=self.evaluation.singular)

        if folds > 1:
            return _rounded(student_interval([of_fold(fold) for fold in range(folds)]))
        return _rounded(with_bootstrap(of_fold(0), self.real_set.values(FEATURES), other.values(FEATURES), _RESAMPLES))

    def _motion_controls(self, floor: FeatureSet) -> dict[str, MotionControl]:
        """Scores of corrupted real clips, each beside the floor of the same clips, or why it was not run."""
        fewest = 1 if self.evaluation.singular else self.dimension + 1
        rows = self.evaluation.table.of("floor", 0)
        sets = corrupted_sets(self.evaluation.clips, rows, self.evaluation.batch, fewest)
        return {
            name: MotionControl(not_run=found) if isinstance(found, str) else self._motion_control(name, found, floor)
            for name, found in sets.items()
        }

    def _motion_control(self, name: str, corrupted: CorruptedSet, floor: FeatureSet) -> MotionControl:
        count = len(corrupted.numbers)
        found_ND = self._features(name, corrupted.read, clips=count).values(FEATURES)
        score = self._of_some(found_ND)
        bottom = self._of_some(floor.values(FEATURES)[list(corrupted.numbers)])
        return MotionControl(score, count, bottom, insensitive_to_motion=score.value <= bottom.high)

    def _of_some(self, features_ND: Tensor) -> Estimate:
        """Distance of some clips from as many of the first real ones."""
        real_ND = self.real_set.values(FEATURES)[: len(features_ND)]
        value = distance_of(real_ND, features_ND, allow_singular=self.evaluation.singular)
        return _rounded(with_bootstrap(value, real_ND, features_ND, _RESAMPLES))

    def _adjacent_l2(self) -> dict[str, Curve]:
        """Curves of the change between adjacent frames for real clips at several intervals (Figure 8)."""
        clips, curves = self.evaluation.clips, {}
        for interval in INTERVALS:
            span = clip_span(self.protocol.frames, interval)
            rows = [row for row in self.evaluation.rows("real")[:_DRIFT_CLIPS] if clips.lengths[row.video] >= span]
            if len(rows) > 1:
                videos = clips.batches(rows, self.evaluation.batch, interval=interval)
                values_BT = torch.cat([CURVES["adjacent_l2"](video_BTHWC) for video_BTHWC in videos])
                curves[str(interval)] = mean_curve(values_BT, self.evaluation.seed)
        return curves

    def _curves(self, features: FeatureSet) -> dict[str, Curve]:
        return {name: mean_curve(features.values(name), self.evaluation.seed) for name in CURVES}

    def _frame_metrics(self, generated: FeatureSet) -> dict[str, FrameMetric]:
        """PSNR, SSIM and learned distances of the predicted frames."""
        names = [name for name in generated.names() if name not in CURVES and name not in (FEATURES, IMAGES)]
        first = self.protocol.context_frames + 1
        return {name: _frame_metric(generated.values(name).double(), first) for name in names}

    def _frame_fid(self, other: FeatureSet) -> tuple[float, ...]:
        """Frechet distance of frame t of all clips for every t; nothing without an image network."""
        if IMAGES not in self.real_set.names():
            return ()
        return tuple(
            round(distance_of(self.real_set.values(IMAGES, t), other.values(IMAGES, t), allow_singular=True), 4)
            for t in range(self.protocol.frames)
        )

    def _reconstruction(self, model: MagiPipeline) -> FeatureSet:
        """The floor clips through the model's autoencoder, measured once for all models that share it."""
        if model.vae.id not in self._reconstructed:
            name = f"vae-{hashlib.sha256(model.vae.id.encode()).hexdigest()[:12]}"
            self._reconstructed[model.vae.id] = self._features(
                name, lambda *part: zip(self.evaluation.reconstructed(model, "floor", *part)), "autoencoder"
            )
        return self._reconstructed[model.vae.id]

    def _pairs(self, plan: SamplePlan) -> Read:
        """Reads samples, each with the real clip whose context it continues, if it has a context."""

        def read(first: int, last: int) -> Pairs:
            videos = [read_samples(self.evaluation, plan, first, last)]
            if self.protocol.context_frames:
                videos.append(self.evaluation.real(self.protocol.context_set, first, last))
            return zip(*videos, strict=True)

        return read

    def _features(
        self, name: str, read: Read, what: str = "", clips: int | None = None, images: bool = False
    ) -> FeatureSet:
        """Measure a set; with ``images`` its frames too, which only the distance at every frame asks for."""
        metrics = self.evaluation.metrics if images else replace(self.evaluation.metrics, images=None)
        what = f"measuring {what or name.replace('_', ' ')}"
        count = self.protocol.count * self.protocol.folds if clips is None else clips
        return feature_set(
            metrics,
            self.folder,
            name,
            count,
            read,
            lambda done, total: self.evaluation.on_progress(what, done, total),
        )


def _frame_metric(values_BT: Tensor, first_frame: int) -> FrameMetric:
    """Means over the frames that are not exact, of which PSNR is infinite."""
    finite_BT = torch.where(values_BT.isinf(), torch.nan, values_BT)
    per_frame = tuple(_finite(value) for value in finite_BT.nanmean(0).tolist())
    mean = _finite(float(finite_BT.nanmean(0).nanmean()))
    return FrameMetric(mean, first_frame, per_frame, exact_frames=int(values_BT.isinf().sum()))


def _finite(value: float) -> float | None:
    return round(value, 4) if value == value else None


def _rounded(estimate: Estimate) -> Estimate:
    return Estimate(**{key: _short(value) for key, value in asdict(estimate).items()})


def _short(value: float) -> float:
    return float(f"{value:.8g}")
