"""A finished model in a study, instead of arms that are trained for it: what identifies it, and what of it is kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from magi.sampling.pipeline import MagiPipeline
from studies.measures import Measures, keep, read_measures


def fingerprint(pipe: MagiPipeline) -> str:
    """Names weights and sampling settings, so that measures of another model are not taken for this one's."""
    digest = hashlib.sha256(pipe.config.sampling.model_dump_json().encode())
    for name, value in sorted(pipe.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def kept_or_made(path: Path, settings: str, make: Callable[[], dict[str, Tensor]]) -> Measures:
    """Measures on disk, or made and kept; ``ValueError`` where those on disk are of other settings."""
    return read_measures(path, settings) if path.is_file() else keep(path, make(), settings)


def file_name(model: str) -> str:
    """A model as part of a file's name."""
    return Path(model).name
