"""LeRobot datasets (v2.1 and v3: parquet and mp4) as videos with their actions, an episode each.

Which version a dataset has is told by its files. LeRobot's action t is given *at* frame t and leads to frame t + 1, so
it becomes entry t + 1 here (``magi.data.actions``), and an episode's last action leads nowhere. pyarrow is an extra
('lerobot'); videos are decoded in the sandbox before they are read. Knows no models.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.actions import as_rows
from magi.data.built_in import Progress, write_built_in
from magi.data.decoding.frames import stream_frames
from magi.data.decoding.probe import DecodeLimits, Outcome, RejectedFile
from magi.data.decoding.sandbox import DecodingSandbox
from magi.data.video_writer import even_image
from magi.errors import DataError
from magi.files import read_text

LIMITS = DecodeLimits(seconds=600.0)
"""A file of v3 holds many episodes."""


@dataclass(frozen=True)
class Episode:
    """Where an episode lies: the table of its rows, and the video that shows it from ``seconds`` on."""

    number: int
    table: Path
    video: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk: what its ``meta/info.json`` says, one of its cameras, and the column of its actions."""

    root: Path
    fps: float
    camera: str
    column: str
    discrete: bool

    @classmethod
    def opened(cls, root: Path, camera: str, column: str) -> "Dataset":
        """``camera`` may be '' where there is one; ``DataError`` for damage, ``ValueError`` for a choice to be made."""
        path = root / "meta" / "info.json"
        try:
            info = json.loads(read_text(path))
            fps, features = float(info["fps"]), info["features"]
            cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
            columns = [name for name in features if name.startswith("action")]
            action = features.get(column)
            discrete = action is not None and "int" in action["dtype"] and list(action["shape"]) in ([], [1])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no description of a LeRobot dataset ({error})") from None
        if not camera and len(cameras) == 1:
            camera = cameras[0]
        if camera not in cameras or Path(camera).name != camera:
            raise ValueError(f"{root}: --camera '{camera}': expected one of {cameras}, those that are stored as video")
        if action is None:
            raise ValueError(f"{root}: --column '{column}': expected a column of actions, such as {columns}")
        if fps <= 0:
            raise DataError(f"{path}: no description of a LeRobot dataset (fps {fps:g})")
        return cls(root, fps, camera, column, discrete)

    def episodes(self) -> list[Episode]:
        """In the order of their numbers; ``DataError`` where there are none or their list is damaged."""
        lists = sorted(self.root.glob("meta/episodes/chunk-*/file-*.parquet"))
        videos = self.root / "videos"
        found = [episode for path in lists for episode in self._listed(path)] or [
            Episode(
                int(path.stem.rpartition("_")[2]), path, videos / path.parent.name / self.camera / f"{path.stem}.mp4"
            )
            for path in self.root.glob("data/chunk-*/episode_*[0-9].parquet")
        ]
        if not found:
            raise DataError(f"{self.root}: no episodes; expected meta/episodes (v3) or data/chunk-*/episode_* (v2.1)")
        return sorted(found, key=lambda episode: episode.number)

    def _listed(self, path: Path) -> list[Episode]:
        """The episodes of a list of v3."""
        video = f"videos/{self.camera}"
        names = ["data/chunk_index", "data/file_index"]
        names += [f"{video}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        columns = _columns(path, ["episode_index", *names])
        try:
            return [
                Episode(
                    int(number),
                    self.root / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet",
                    self.root / f"{video}/chunk-{video_chunk:03d}/file-{video_file:03d}.mp4",
                    float(seconds),
                )
                for number, chunk, file, video_chunk, video_file, seconds in zip(*columns, strict=True)
            ]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: no list of episodes ({error})") from None

    def actions(self, episode: Episode) -> NDArray[np.float64]:
        """(T,) or (T, A) as LeRobot has them, given at each frame; ``DataError`` if they cannot be used."""
        numbers, frames, values = _columns(
            episode.table, ["episode_index", "frame_index", self.column], ("episode_index", "==", episode.number)
        )
        try:
            actions = np.array(values, np.float64)
            actions = actions.reshape(len(actions), -1)
            as_rows(actions, actions.shape[1])
        except (ValueError, TypeError) as error:
            raise DataError(f"{episode.table}: {self.column} of episode {episode.number}: {error}") from None
        if len(numbers) < 2 or frames != list(range(len(frames))):
            raise DataError(f"{episode.table}: episode {episode.number} has no frames 0, 1, 2, ...")
        return actions[:, 0] if self.discrete else actions

    def images(self, episode: Episode, frames: int, probed: Callable[[Path], Outcome]) -> Iterator[NDArray[np.uint8]]:
        """The frames of an episode; ``DataError`` for a missing, damaged or too short video, or another rate."""
        probe, first = probed(episode.video), round(episode.seconds * self.fps)
        if isinstance(probe, RejectedFile):
            raise DataError(f"{episode.video}: {probe.detail}")
        if first + frames > probe.frames:
            raise DataError(
                f"{episode.video}: {probe.frames} frames; episode {episode.number} ends at {first + frames}"
            )
        if abs(probe.fps / self.fps - 1) > 0.01:
            raise DataError(f"{episode.video}: {probe.fps:g} frames a second, but the dataset has {self.fps:g}")
        yield from stream_frames(episode.video, range(first, first + frames), probe)


def import_lerobot(
    dataset: Dataset, out: Path, size: int = 128, max_bad_fraction: float = 0.01, progress: Progress | None = None
) -> tuple[int, list[str]]:
    """Write ``OUT/episode_<number>.mp4``, ``size`` pixels at the short side (0: as stored), beside each a ``.json``.

    Returns how many were written, and a line about each episode that cannot be used. What is there is kept
    (``write_built_in``). ``DataError`` if more than ``max_bad_fraction`` of the episodes cannot be used.
    """
    episodes, reasons, usable = dataset.episodes(), [], []
    for episode in episodes:
        try:
            usable.append((episode, dataset.actions(episode)))
        except DataError as error:
            reasons.append(str(error))
    settings: dict[str, Any] = {
        "dataset": dataset.root.name, "camera": dataset.camera, "column": dataset.column, "size": size,
        "fps": dataset.fps,
    }  # fmt: skip
    if dataset.discrete and usable:
        most = max(int(np.nanmax(actions)) for _, actions in usable)
        settings["action_names"] = [str(number) for number in range(most + 1)]

    def make(number: int) -> tuple[NDArray[np.uint8], dict[str, Any]] | None:
        episode, actions = usable[number]
        try:
            images = dataset.images(episode, len(actions), probed)
            video_THWC = np.stack([even_image(image_HWC, size) for image_HWC in images])
        except DataError as error:
            reasons.append(str(error))
            return None
        return video_THWC, {"frames": len(actions), "actions": [None, *actions[:-1].tolist()]}

    paths = [out / f"episode_{episode.number:06d}.mp4" for episode, _ in usable]
    written = 0
    with DecodingSandbox(LIMITS) as sandbox:
        probed = cache(sandbox.probe)
        if paths:
            written = write_built_in("the same dataset", out, paths, settings, make, "yuv444p", progress)
    if len(reasons) > max_bad_fraction * len(episodes):
        raise DataError(
            f"{dataset.root}: {len(reasons)} of {len(episodes)} episodes cannot be used, more than max_bad_fraction "
            f"{max_bad_fraction:g}; the first: {reasons[0]}"
        )
    return written, reasons


def _columns(path: Path, names: list[str], only: tuple[str, str, int] | None = None) -> list[list[Any]]:
    """The columns of a table, of some rows or all; ``ValueError`` without pyarrow, ``DataError`` for damage."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("LeRobot datasets are read with pyarrow; pip install -e '.[lerobot]'") from None
    try:
        table = parquet.read_table(path, columns=names, filters=[only] if only else None)
        return [table[name].to_pylist() for name in names]
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: no table of {', '.join(names)} ({' '.join(str(error).split())[:120]})") from None
