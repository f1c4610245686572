"""The child process that reads a released OmniTokenizer checkpoint: a pickle in, safetensors and JSON out.

The file is read by torch's restricted unpickler (``weights_only``), under limits of memory and written bytes. Classes
that a training framework left in it are replaced by empty stand-ins, so nothing outside torch is imported or called;
any other class is refused by name before reading starts. This module knows no architecture.
"""

import contextlib
import json
import os
import resource
import sys
from argparse import Namespace
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TENSORS_FILE = "tensors.safetensors"
_FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
_HARMLESS = {"numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "pathlib.PosixPath"}
_WRITTEN_BYTES = 4 << 30
_SHOWN = 200


class StandIn:
    """Takes the place of a class that is not needed: any arguments, no state."""

    def __init__(self, *_: object) -> None: ...

    def __new__(cls, *_: object) -> "StandIn":
        """Accept what the class it stands for would."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What the child says: why it refused, or what is in the file beside the tensors."""

    refused: str
    hyper_parameters: dict[str, Any]
    left_out: dict[str, int]


def main() -> None:
    """The child's side: one request as JSON in the arguments, one ``Answer`` as JSON on the standard output."""
    request = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else may end up in the answer
    for kind, value in (
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, _WRITTEN_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the others still hold
            resource.setrlimit(kind, (value, value))
    answer = read(Path(request["checkpoint"]), Path(request["folder"]), tuple(request["prefixes"]))
    with os.fdopen(answers, "w", encoding="utf-8") as stream:
        json.dump(answer.__dict__, stream)


def read(checkpoint: Path, folder: Path, prefixes: tuple[str, ...]) -> Answer:
    """Write the tensors whose names start with one of ``prefixes`` into ``folder``; the answer says why not, if not."""
    import torch  # after the limits are set
    from safetensors.torch import save_file

    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(checkpoint))
    except Exception as error:  # the file is anything at all: whatever is wrong with it is the answer
        return _refused(f"not a torch checkpoint, or truncated ({_shown(error)})")
    stand_ins: dict[str, Any] = {name: _stand_in(name) for name in foreign}
    refused = sorted(name for name, value in stand_ins.items() if value is None)
    if refused:
        return _refused(f"it asks for {', '.join(refused)[:_SHOWN]}, which no released checkpoint needs; not read")
    try:
        with torch.serialization.safe_globals([(value, name) for name, value in stand_ins.items()]):
            values = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (MemoryError, RuntimeError) as error:
        return _refused(f"damaged, or larger in memory than allowed ({_shown(error)})")
    except Exception as error:
        return _refused(f"damaged, not readable ({_shown(error)})")
    state = values.get("state_dict") if isinstance(values, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        return _refused("no state_dict of tensors in it; expected a training checkpoint of OmniTokenizer")
    if not all(isinstance(name, str) and name.isascii() and name.isprintable() for name in state):
        return _refused("tensors in it have names that are not plain text; not a released checkpoint")
    kept = {name: value.contiguous() for name, value in state.items() if name.startswith(prefixes)}
    left_out: dict[str, int] = {}
    for name in (name for name in state if name not in kept):
        prefix = name.partition(".")[0]
        left_out[prefix] = left_out.get(prefix, 0) + 1
    save_file({name: value.clone() for name, value in kept.items()}, folder / TENSORS_FILE)
    return Answer("", _plain(values.get("hyper_parameters")), left_out)


def _stand_in(name: str) -> Any:
    """What a foreign name in the pickle becomes; None if the file must be refused for it."""
    if name == "argparse.Namespace":
        return Namespace  # plain attributes; it holds the hyper-parameters
    if name == "pytorch_lightning.utilities.parsing.AttributeDict":
        return OrderedDict
    return StandIn if name.startswith(_FRAMEWORKS) or name in _HARMLESS else None


def _plain(hyper_parameters: object) -> dict[str, Any]:
    """The arguments that are plain numbers, strings or None."""
    arguments = hyper_parameters.get("args", hyper_parameters) if isinstance(hyper_parameters, dict) else None
    values = vars(arguments) if isinstance(arguments, Namespace) else arguments
    if not isinstance(values, dict):
        return {}
    plain = {
        str(key): value for key, value in values.items() if value is None or type(value) in (bool, int, float, str)
    }
    return {key: value for key, value in plain.items() if len(str(value)) <= _SHOWN}


def _refused(reason: str) -> Answer:
    return Answer(reason, {}, {})


def _shown(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
