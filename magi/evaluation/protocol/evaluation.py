"""An evaluation: a protocol, what it measures with, the real clips and the models; checked when it is put together.

Everything after (samples, scores, pictures) takes this one object. Knows no command line.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi.data.clips import clip_span
from magi.evaluation.protocol.card import ProtocolCard, make_card
from magi.evaluation.protocol.clip_table import ClipRow, ClipTable, data_hash
from magi.evaluation.protocol.features import Metrics
from magi.evaluation.protocol.protocols import EvaluationProtocol
from magi.evaluation.protocol.real_clips import RealClips, to_score_size
from magi.sampling.pipeline import MagiPipeline

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, done, all)."""

REAL, RECONSTRUCTED = "real", "vae"
LEAST_UNUSED_VIDEOS = 8
"""That inverse dynamics is trained on."""


def no_progress(what: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation needs; ``out`` is where samples, features and the result lie.

    ``ValueError``, before anything is written, for what cannot be scored.
    """

    protocol: EvaluationProtocol
    overrides: Mapping[str, Any]
    metrics: Metrics
    clips: RealClips
    table: ClipTable
    out: Path
    models: Mapping[str, MagiPipeline] = field(default_factory=dict)
    seed: int = 0
    batch: int = 8
    on_progress: OnProgress = no_progress

    def __post_init__(self) -> None:
        if not 0 <= self.protocol.context_frames < self.protocol.frames:
            raise ValueError(f"context {self.protocol.context_frames} must be below the {self.protocol.frames} frames")
        if self.protocol.ground_truth and not self.protocol.context_frames:
            raise ValueError(f"context 0: {self.protocol.name} needs at least 1 frame of context; give --context")
        if self.metrics.network is not None:
            self._check_network()
        if self.protocol.network == "inverse_dynamics" and len(self.unused_videos) < LEAST_UNUSED_VIDEOS:
            raise ValueError(
                f"{self.clips.index.root}: {len(self.unused_videos)} videos of at least {self.protocol.frames} frames "
                f"beside the {self.protocol.count} that are measured; inverse dynamics is trained on "
                f"{LEAST_UNUSED_VIDEOS} or more: add videos, or ask fewer clips with --count"
            )
        for name, model in self.models.items():
            self._check_model(name, model)

    def _check_network(self) -> None:
        protocol, network = self.protocol, self.metrics.feature_network
        if protocol.frames < network.minimum_frames:
            raise ValueError(
                f"{protocol.name}: clips of {protocol.frames} frames, {network.name} needs at least "
                f"{network.minimum_frames}; use longer clips"
            )
        if protocol.count <= network.dimension and not self.singular:
            raise ValueError(
                f"{protocol.count} clips are no more than the {network.dimension} dimensions of {network.name}: the "
                f"covariance is singular and the score mostly bias; use at least {network.dimension + 1}"
            )

    def _check_model(self, name: str, model: MagiPipeline) -> None:
        if name == REAL or name.split(" ")[0] == RECONSTRUCTED:
            raise ValueError(f"a model cannot be called '{name}': the report uses that name")
        data, protocol = model.config.data, self.protocol
        if min(data.height, data.width) < protocol.score_size:
            raise ValueError(
                f"{name} makes {data.height} x {data.width} pixels, {protocol.name} scores at {protocol.score_size} x "
                f"{protocol.score_size}; use a model of that size, or override with --size, which the score's name says"
            )
        model.vae.latent_frames(protocol.frames)  # raises where the autoencoder does not take clips of this length

    @property
    def card(self) -> ProtocolCard:
        """The protocol card."""
        index, span = self.clips.index, clip_span(self.protocol.frames, self.protocol.interval)
        data = {
            "videos": len(index.videos),
            "skipped": index.skipped,
            "too_short": sum(frames < span for frames in self.clips.lengths.values()),
            "videos_sha256": data_hash(index),
            "table_sha256": self.table.hash,
            "real_videos": len(self.table.videos("real")),
            "floor_videos": len(self.table.videos("floor")),
            "floor_clips_of_real_videos": self.table.shared_clips,
        }
        return make_card(self.protocol, self.overrides, self.metrics.described(), data, self.seed)

    @property
    def by_autoencoder(self) -> dict[str, MagiPipeline]:
        """Of each autoencoder the first model that has it, by that model's name."""
        found: dict[str, tuple[str, MagiPipeline]] = {}
        for name, model in self.models.items():
            found.setdefault(model.vae.id, (name, model))
        return dict(found.values())

    @property
    def unused_videos(self) -> list[str]:
        """Videos long enough for a clip that no clip is of."""
        used, least = {row.video for row in self.table.rows}, clip_span(self.protocol.frames, self.protocol.interval)
        return [path for path, frames in self.clips.lengths.items() if frames >= least and path not in used]

    @property
    def singular(self) -> bool:
        """Whether no more clips than feature dimensions are allowed."""
        return "singular" in self.overrides

    def rows(self, name: str) -> list[ClipRow]:
        """The rows of a set, fold after fold."""
        return [row for fold in range(self.protocol.folds) for row in self.table.of(name, fold)]

    @property
    def predicted(self) -> list[ClipRow]:
        """The rows whose contexts and labels the samples have, sample k those of row k."""
        return self.rows(self.protocol.context_set)

    def real(self, name: str, first: int, last: int) -> Iterator[Tensor]:
        """Video_BTHWC of the real clips ``first`` up to ``last`` (not included) of a set, as they are scored."""
        yield from self.clips.batches(self.rows(name)[first:last], self.batch)

    def reconstructed(self, model: MagiPipeline, name: str, first: int, last: int) -> Iterator[Tensor]:
        """The same clips through a model's autoencoder and back: what a perfect model with it would make."""
        yield from self.reconstructed_rows(model, self.rows(name)[first:last])

    def reconstructed_rows(self, model: MagiPipeline, rows: list[ClipRow]) -> Iterator[Tensor]:
        """Video_BTHWC of any rows through a model's autoencoder and back."""
        size = (model.config.data.height, model.config.data.width)
        device = next(model.model.parameters()).device
        for start in range(0, len(rows), self.batch):
            video_BTHWC = torch.stack([self.clips.read(row, size) for row in rows[start : start + self.batch]])
            yield to_score_size(model.vae.decode(model.vae.encode(video_BTHWC.to(device))).cpu(), self.protocol)
