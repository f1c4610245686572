"""The child process that reads an untrusted checkpoint: a pickle or TorchScript archive in, safetensors and JSON out.

A pickle is read by torch's restricted unpickler (``weights_only``). Classes that a training framework left in it become
empty stand-ins, so nothing outside torch is imported or called; any other class is refused by name before reading
starts. A TorchScript archive is parsed, never executed. Limits of memory and written bytes are set before torch is
imported. Knows no network.
"""

import contextlib
import json
import os
import re
import resource
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from magi.errors import CheckpointError

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
_HARMLESS = {"numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "pathlib.PosixPath"}
_SHOWN = 200  # characters of a reason


class StandIn:
    """Takes the place of a class that is not needed: any arguments, no state."""

    def __init__(self, *_: object) -> None: ...

    def __new__(cls, *_: object) -> "StandIn":
        """Accept what the class it stands for would."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


@dataclass(frozen=True)
class Answer:
    """What the child reports: why it refused the file, or what the file holds besides the tensors it wrote."""

    refused: str = ""
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def child_main() -> None:
    """Read one request as JSON from the arguments, write one ``Answer`` as JSON to the standard output."""
    request = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else may end up in the answer
    apply_rlimits(request["memory_bytes"], request["written_bytes"])
    answer = read(Path(request["checkpoint"]), Path(request["tensors_file"]), request["prefixes"])
    with os.fdopen(answers, "w", encoding="utf-8") as stream:
        json.dump(asdict(answer), stream)


def call_in_child(module: str, argument: Any) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a process that calls ``child_main`` of a module, with ``argument`` as JSON.

    -c and -P keep the caller's script and working directory out of its imports; one BLAS thread keeps its address
    space small.
    """
    search = [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, search))}
    code = f"from {module} import child_main; child_main()"
    return [sys.executable, "-P", "-c", code, json.dumps(argument)], environment


def apply_rlimits(memory_bytes: int, written_bytes: int) -> None:
    """Limit this process's address space and the size of files it writes; no core dumps."""
    limits = {resource.RLIMIT_AS: memory_bytes, resource.RLIMIT_FSIZE: written_bytes, resource.RLIMIT_CORE: 0}
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some; the others still hold
            resource.setrlimit(kind, (value, value))


def read(checkpoint: Path, tensors_file: Path, prefixes: Sequence[str] = ()) -> Answer:
    """Write the wanted tensors to ``tensors_file``; the answer says why not, if not. No prefixes: all tensors."""
    from magi.untrusted.torchscript import is_torchscript, read_torchscript  # imports torch, after the limits are set

    try:
        values = read_torchscript(checkpoint) if is_torchscript(checkpoint) else _unpickled(checkpoint)
        state = _state(values)
        wanted = {name: value for name, value in state.items() if not prefixes or name.startswith(tuple(prefixes))}
        _save(wanted, tensors_file)
    except CheckpointError as error:
        return Answer(refused=str(error))
    except Exception as error:  # the file is anything at all: whatever is wrong with it is the answer
        return Answer(refused=f"damaged, or larger in memory than allowed ({_shown(error)})")
    left_out: dict[str, int] = {}
    for name in state.keys() - wanted.keys():
        prefix = name.partition(".")[0]
        left_out[prefix] = left_out.get(prefix, 0) + 1
    return Answer("", _plain(values.get("hyper_parameters")), left_out)


def _unpickled(checkpoint: Path) -> Any:
    """What torch's restricted unpickler makes of the file; ``CheckpointError`` for foreign classes and other files."""
    import torch

    try:
        # Torch lists the classes of its zip format only; the restricted unpickler refuses all of them in the older one.
        with checkpoint.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(checkpoint)) if is_zip else []
    except Exception as error:
        raise CheckpointError(f"not a torch checkpoint, or truncated ({_shown(error)})") from None
    stand_ins: dict[str, Any] = {name: _stand_in(name) for name in foreign}
    refused = sorted(name for name, value in stand_ins.items() if value is None)
    if refused:
        raise _asks_for(", ".join(refused))
    try:
        with torch.serialization.safe_globals([(value, name) for name, value in stand_ins.items()]):
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise _asks_for(named[1]) from None
        raise


def _asks_for(names: str) -> CheckpointError:
    return CheckpointError(f"it asks for {names[:_SHOWN]}, which no known weight file needs; not read")


def _state(values: Any) -> dict[str, Any]:
    """The dictionary of tensors in a checkpoint: it itself, or what it has under ``state_dict``."""
    import torch

    state = values.get("state_dict", values) if isinstance(values, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError("no dictionary of tensors in it; expected published weights or a training checkpoint")
    if not all(isinstance(name, str) and name.isascii() and name.isprintable() for name in state):
        raise CheckpointError("tensors in it have names that are not plain text")
    return dict(state)


def _save(tensors: Mapping[str, Any], tensors_file: Path) -> None:
    from safetensors.torch import save_file

    # Clones, because safetensors refuses tensors that share memory.
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, tensors_file)


def _stand_in(name: str) -> Any:
    """What replaces a foreign name in the pickle; None if the file must be refused for it."""
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


def _shown(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
