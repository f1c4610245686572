"""Reads the tensors of a TorchScript archive by name, and runs nothing of it.

Some weights are published only as compiled modules. Loading one with torch executes code in it, so the archive is
parsed instead: its table of contents, a pickle, is disassembled and followed as data, and whatever is neither a module
nor a tensor is skipped. Knows no network.
"""

import math
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from magi.errors import CheckpointError

_TYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass(eq=False)
class _Module:
    """An object of the archive; its class is never looked up."""

    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor is stored: type and key of its storage, then offset, sizes and strides."""

    storage: tuple[Any, ...]
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A global name; never imported."""

    text: str


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of a compiled module; its contents are not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a compiled module by name, on the CPU, as they are stored.

    ``CheckpointError`` of one line, without the file's name, for an archive that is damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl"))
            found: dict[str, _Tensor] = {}
            _collect(_followed(archive.read(f"{root}data.pkl")), "", found)
            return {name: _tensor(archive, f"{root}data/", entry) for name, entry in found.items()}
    except StopIteration:
        raise CheckpointError("an archive, but not of a compiled module; give the published file") from None
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise CheckpointError(f"not a compiled module, or damaged ({reason}); download it again") from None


def _collect(value: Any, name: str, found: dict[str, _Tensor]) -> None:
    """Tensors under their names as ``state_dict`` gives them."""
    if isinstance(value, _Tensor):
        found[name] = value
    elif isinstance(value, _Module):
        for key, inner in value.state.items():
            _collect(inner, f"{name}.{key}" if name else str(key), found)


def _tensor(archive: zipfile.ZipFile, folder: str, entry: _Tensor) -> torch.Tensor:
    kind, key = entry.storage[1].text.rpartition(".")[2], entry.storage[2]
    if kind not in _TYPES:
        raise ValueError(f"storage of type {kind}")
    stored = archive.getinfo(f"{folder}{key}")
    if stored.compress_type != zipfile.ZIP_STORED:  # as published files are; a small file cannot become a huge one
        raise ValueError(f"{stored.filename} is compressed")
    values = torch.frombuffer(bytearray(archive.read(stored)), dtype=_TYPES[kind])
    if math.prod(entry.sizes) > len(values):
        raise ValueError(f"a tensor of {entry.sizes} in a storage of {len(values)} values")
    return values.as_strided(entry.sizes, entry.strides, entry.offset).clone()


def _followed(table: bytes) -> Any:
    """What the pickle ``table`` describes: modules, tensors and plain values; ``ValueError`` for an unknown opcode."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, given, _ in pickletools.genops(table):
        name, argument = opcode.name, cast(Any, given)
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        else:
            _step(name, stack)
    raise ValueError("the table of contents ends early")


def _step(name: str, stack: list[Any]) -> None:
    """One opcode that takes values from the stack and leaves one."""
    if name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
        stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in _TUPLES:
        values = stack[-_TUPLES[name] :]
        del stack[-_TUPLES[name] :]
        stack.append(tuple(values))
    elif name in ("APPENDS", "APPEND"):
        values = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
        stack[-1].extend(values)
    elif name in ("SETITEMS", "SETITEM"):
        values = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        stack[-1].update(zip(values[::2], values[1::2], strict=True))
    elif name == "BINPERSID":
        stack.append(("storage", *stack.pop()[1:]))
    elif name == "NEWOBJ":
        del stack[-2:]
        stack.append(_Module())
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], _Module) and isinstance(state, dict):
            stack[-1].state.update(state)
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        if isinstance(function, _Name) and function.text == "torch._utils._rebuild_tensor_v2":
            stack.append(_Tensor(*arguments[:4]))
        else:
            stack.append({} if function == _Name("collections.OrderedDict") else function)
    else:
        raise ValueError(f"unknown opcode {name}")


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take everything above the last mark off the stack, and the mark."""
    mark = len(stack) - 1 - next(number for number, value in enumerate(reversed(stack)) if value is _MARK)
    values = stack[mark + 1 :]
    del stack[mark:]
    return values
