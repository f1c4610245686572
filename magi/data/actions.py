"""What was pressed: the action track beside a video, and the actions between the frames of a clip.

A track has an entry a frame; ``entry[t]`` is the action between frames t - 1 and t, so it leads *into* frame t, and
that of frame 0 is never used. An entry is a whole number (one of A actions, such as keys) or A numbers (axes, or
several keys at once); one that is empty, null, -1 or NaN throughout is no action. Beside ``NAME.mp4`` lies one of

- ``NAME.actions.npy``: (T,) of whole numbers, or (T, A);
- ``NAME.actions.csv``: a line a frame, with or without a heading;
- ``NAME.actions.jsonl``: a number or a list a line;
- ``NAME.json``: its key ``actions``, as the built-in worlds write it, and ``action_names`` if the actions have names.

Here an action is a row of A float32: its number as one-hot, or its numbers. Rows of several frames become one by their
mean (a bag), so any interval and any autoencoder that compresses time can be trained on.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.index.index import VideoIndex
from magi.errors import DataError
from magi.files import open_file, read_text

SUFFIXES = (".actions.npy", ".actions.csv", ".actions.jsonl", ".json")
MOST_BYTES = 256 * 2**20
"""A larger file is no action track."""

Rows = NDArray[np.float32]
"""(T, A); a row of NaN is no action."""


def track_path(video: Path) -> Path | None:
    """The action track beside a video; None if there is none."""
    found = _find(video)
    return None if found is None else found[0]


def _find(video: Path) -> tuple[Path, Any] | None:
    """The track beside a video and, of a sidecar, what it says: it may be large, so whoever finds it has read it."""
    for suffix in SUFFIXES:
        path = video.with_name(video.stem + suffix)
        if path.is_file():
            sidecar = _read_sidecar(path)
            if suffix != ".json" or (isinstance(sidecar, dict) and "actions" in sidecar):
                return path, sidecar
    return None


def read_track(path: Path, actions: int, frames: int | None = None) -> Rows:
    """Rows (T, A) of the track of a video of ``frames`` frames, which may go on for longer; A is ``actions``.

    ``DataError`` naming the file and what is wrong: unreadable, too short, NaN in part of an entry, an action that is
    not among the A, or entries of another size.
    """
    return _rows(path, _entries(path, _read_sidecar(path)), actions, frames)


def _rows(path: Path, entries: NDArray[np.float64], actions: int, frames: int | None) -> Rows:
    if frames is not None and len(entries) < frames:
        raise DataError(f"{path}: actions of {len(entries)} frames, but the video has {frames}")
    try:
        return as_rows(entries[:frames], actions)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def as_rows(entries: NDArray[Any], actions: int) -> Rows:
    """Entries (T,) or (T, A) as rows; ``ValueError`` for one that is not among the A, not finite or of another size."""
    entries = entries.astype(np.float64)
    if entries.ndim == 2:
        if entries.shape[1] != actions:
            raise ValueError(f"an action has {entries.shape[1]} numbers, expected {actions}")
        absent_T = np.isnan(entries).all(axis=1)
        bad_T = ~absent_T & ~np.isfinite(entries).all(axis=1)
        if bad_T.any():
            raise ValueError(f"action {bad_T.argmax()} is not finite")
        return entries.astype(np.float32)
    absent_T = np.isnan(entries) | (entries == -1)
    number_T = np.where(absent_T, 0, entries)
    bad_T = (number_T != np.floor(number_T)) | (number_T < 0) | (number_T >= actions)
    if bad_T.any():
        raise ValueError(f"action {bad_T.argmax()} is {entries[bad_T][0]:g}, not one of 0..{actions - 1}")
    rows_TA = np.eye(actions, dtype=np.float32)[number_T.astype(np.int64)]
    rows_TA[absent_T] = np.nan
    return rows_TA


def count_actions(path: Path) -> int:
    """A, as a track says it by itself: the number of its ``action_names``, or of the numbers of an entry.

    ``DataError`` for a track of whole numbers without names, which does not say how many there are.
    """
    sidecar = _read_sidecar(path)
    names = sidecar.get("action_names") if isinstance(sidecar, dict) else None
    if isinstance(names, list) and names:
        return len(names)
    entries = _entries(path, sidecar)
    if entries.ndim == 2:
        return int(entries.shape[1])
    raise DataError(f"{path}: actions are numbers without names; say how many kinds there are with --actions")


def _entries(path: Path, sidecar: Any) -> NDArray[np.float64]:
    """(T,) or (T, A), NaN where there is no action."""
    try:
        if path.suffix == ".npy":
            with open_file(path, most_bytes=MOST_BYTES) as file:  # not np.load, which also opens archives
                entries = np.lib.format.read_array(file, allow_pickle=False)
            if entries.dtype.kind not in "iufb":
                raise ValueError(f"dtype {entries.dtype} holds no numbers")
            entries = entries.astype(np.float64)
        else:
            entries = as_entries(list(sidecar["actions"]) if path.suffix == ".json" else _listed(path))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: no track of actions ({' '.join(str(error).split())[:120]})") from None
    if entries.ndim not in (1, 2) or not entries.size:
        raise DataError(f"{path}: no track of actions (shape {entries.shape}; expected (frames,) or (frames, numbers))")
    return entries


def _listed(path: Path) -> list[Any]:
    """The entries of a text file, each a number, a list of numbers, or None."""
    text = read_text(path, MOST_BYTES).removeprefix("\ufeff")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if lines and any(_is_name(cell) for cell in lines[0]):
        lines = lines[1:]
    rows = [[float(cell) if cell.strip() else np.nan for cell in line] for line in lines]
    return [row[0] if len(row) == 1 else row for row in rows]


def _is_name(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return True
    return False


def _read_sidecar(path: Path) -> Any:
    """What a ``.json`` says; {} if nothing that can be read, and for a track of another form."""
    try:
        return json.loads(read_text(path, MOST_BYTES)) if path.suffix == ".json" else {}
    except (OSError, ValueError, RecursionError):
        return {}


def as_entries(entries: Sequence[Any]) -> NDArray[np.float64]:
    """Numbers, or lists of numbers, as an array, NaN for None; ``ValueError`` for a mixture."""
    widths = {len(entry) for entry in entries if isinstance(entry, list)}
    scalars = any(entry is not None and not isinstance(entry, list) for entry in entries)
    if len(widths) > 1 or (widths and scalars):
        raise ValueError("actions of several forms")
    empty: Any = [np.nan] * widths.pop() if widths else np.nan
    return np.array([empty if entry is None else entry for entry in entries], np.float64)


def video_track(video: Path, actions: int, frames: int) -> Rows:
    """The rows of a video of ``frames`` frames; ``DataError`` as for ``read_track``, or where it has no track."""
    found = _find(video)
    if found is None:
        raise DataError(f"{video}: no actions beside it ({', '.join(video.stem + suffix for suffix in SUFFIXES)})")
    path, sidecar = found
    return _rows(path, _entries(path, sidecar), actions, frames)


def actions_between(rows_FA: Rows, start: int, frames: int, interval: int) -> Rows:
    """Rows (``frames``, A) of a clip that begins at frame ``start``: row t is the mean of what led from its frame t - 1
    to its frame t, without those that are no action. Row 0 is no action: the frame before it is not in the clip.
    """
    span_FA = rows_FA[start + 1 : start + 1 + (frames - 1) * interval]
    return _with_first(_bags(span_FA, interval))


def pooled(rows_TA: Rows, latent_frames: int) -> Rows:
    """Rows of the latent frames of a clip: the first alone, each other one the mean over the frames that it holds."""
    if len(rows_TA) == latent_frames:
        return rows_TA
    return _with_first(_bags(rows_TA[1:], (len(rows_TA) - 1) // (latent_frames - 1)))


def _bags(rows_FA: Rows, size: int) -> Rows:
    bags_TSA = rows_FA.reshape(-1, size, rows_FA.shape[1])
    given_TS1 = ~np.isnan(bags_TSA).all(axis=2, keepdims=True)
    counts_T1 = given_TS1.sum(axis=1)
    sums_TA = np.where(given_TS1, bags_TSA, 0).sum(axis=1)
    return np.where(counts_T1 > 0, sums_TA / np.maximum(counts_T1, 1), np.nan).astype(np.float32)


def _with_first(rows_TA: Rows) -> Rows:
    return np.concatenate([np.full((1, rows_TA.shape[1]), np.nan, np.float32), rows_TA])


def found_actions(index: VideoIndex, most: int = 100) -> int:
    """A of the first track among the first ``most`` videos; 0 if none of them has one."""
    for number in range(min(most, len(index.videos))):
        path = track_path(index.root / index.videos[number].path)
        if path is not None:
            return count_actions(path)
    return 0


def with_actions(index: VideoIndex, actions: int, max_bad_fraction: float) -> tuple[VideoIndex, list[str]]:
    """The videos whose tracks can be used, and a line about each of the others.

    ``DataError`` if more than ``max_bad_fraction`` of the videos cannot be used, bad videos and bad tracks together.
    """
    usable, reasons = [], []
    for record in index.videos:
        try:
            video_track(index.root / record.path, actions, record.frames)
            usable.append(record)
        except DataError as error:
            reasons.append(str(error))
    skipped, listed = index.skipped + len(reasons), index.skipped + len(index.videos)
    if not usable or skipped > max_bad_fraction * listed:
        raise DataError(
            f"{index.root}: {len(reasons)} of {len(index.videos)} videos have no usable actions, more than "
            f"max_bad_fraction {max_bad_fraction:g}; the first: {reasons[0] if reasons else 'none'}"
        )
    return (replace(index, videos=usable, skipped=skipped), reasons) if reasons else (index, reasons)
