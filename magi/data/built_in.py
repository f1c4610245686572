"""Folders of built-in, recorded or imported videos, each an mp4 beside a sidecar of facts; restartable."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magi.data.video_writer import Chroma, write_mp4
from magi.files import atomic_write, read_text, write_text

Progress = Callable[[int, int], None]
MakeClip = Callable[[int], tuple[NDArray[np.uint8], dict[str, Any]] | None]
"""From a place in the list of clips to frames (T, H, W, 3) and what the sidecar says beside the settings.

None where there is no such clip."""


def write_built_in(
    what: str,
    out: Path,
    paths: Sequence[Path],
    settings: dict[str, Any],
    make: MakeClip,
    chroma: Chroma = "yuv420p",
    progress: Progress | None = None,
    captions: bool = False,
) -> int:
    """Write clip i to ``paths[i]`` with a ``.json`` beside it; returns the number of videos written.

    Names end in ``_<number>``, the last in the largest. Clips already there are kept, so a second call continues or
    does nothing. ``settings`` has the rate as ``fps`` and stands in every sidecar. With ``captions``, what a sidecar
    says as ``caption`` also stands in a ``.txt``. ``progress`` is called with (done, all). Raises ``ValueError`` if
    ``out`` holds ``what`` of other settings, or more of them.
    """
    if not paths:
        raise ValueError("clips must be at least 1, got 0")
    _check_folder(what, out, settings, 1 + int(paths[-1].stem.rpartition("_")[2]))
    written = 0
    for number, path in enumerate(paths):
        sidecar_path, caption_path = path.with_suffix(".json"), path.with_suffix(".txt")
        files = (path, sidecar_path, caption_path) if captions else (path, sidecar_path)
        if not all(file.is_file() for file in files):
            made = make(number)
            if made is not None:
                # A sidecar that exists says that the video is whole, so it comes last.
                write_mp4(path, made[0], settings["fps"], chroma)
                if captions:
                    write_text(caption_path, f"{made[1]['caption']}\n")
                with atomic_write(sidecar_path) as beside:
                    beside.write_text(json.dumps(settings | made[1]), encoding="utf-8")
                written += 1
        if progress is not None:
            progress(number + 1, len(paths))
    return written


def _check_folder(what: str, out: Path, settings: dict[str, Any], clips: int) -> None:
    """Refuse to mix clips of different settings in one folder."""
    for sidecar in sorted(out.rglob("*_[0-9]*.json")):
        try:
            found = json.loads(read_text(sidecar))
            differing = [key for key, value in settings.items() if found[key] != value]
            number = int(sidecar.stem.rpartition("_")[2])
        except (OSError, KeyError, TypeError, ValueError):
            raise ValueError(f"{sidecar}: not a sidecar of {what}; choose another folder") from None
        if differing:
            key = differing[0]
            raise ValueError(f"{sidecar}: has {key} {found[key]}, asked {settings[key]}; choose another folder")
        if number >= clips:
            raise ValueError(f"{out}: holds clip {number}, more than the {clips} clips asked; choose another folder")
