"""The states of captions on disk: every different caption through a frozen encoder once, found again by its words.

A folder holds a header (``magi-text.json``: which encoder, of which captions) and shards of a thousand captions in a
fixed order. A shard is a safetensors file that appears whole: ``states_FE`` (float16) of its captions one after
another, ``lengths_V`` of each, and ``keys_VH``, the beginning of the SHA-256 of its words. So it does not matter where
a caption lies or how often, and a caption that was changed since is missed, not confused. Restartable: complete shards
stay. Worker i of N takes every N-th shard and needs to know of no other.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magi.config import ModelConfig
from magi.errors import DataError
from magi.files import read_text, remove_leftovers, utf8_name, write_text
from magi.progress import Report
from magi.text.encoder import FrozenChoice
from magi.weights import write_tensors

HEADER_NAME = "magi-text.json"
FORMAT = 1
CAPTIONS_A_SHARD, CAPTIONS_A_BATCH = 1000, 32
AGAIN = "run 'magi encode-text' again"
_KEY_BYTES = 16


class StateEncoder(Protocol):
    """What makes states of texts: ``magi.text.frozen.FrozenEncoder``."""

    id: str
    source: str

    @property
    def width(self) -> int:
        """E, the width of a state."""
        ...

    def states(self, texts: Sequence[str], longest: int, cut: bool = False) -> list[Tensor]:
        """states_LE float16 of each text."""
        ...


@dataclass(frozen=True)
class TextHeader:
    """What all states of a folder share."""

    encoder: str
    """Id of the encoder's weights and tokenizer."""
    source: str
    """Folder or hub id that it was loaded from."""
    width: int
    longest: int
    """Tokens after which a caption is cut."""
    captions: int
    digest: str
    """Of all captions."""
    captions_a_shard: int
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """Number of shards of the finished folder."""
        return -(-self.captions // self.captions_a_shard)

    @property
    def settings(self) -> str:
        """Names this header inside each shard; where the encoder was loaded from does not matter."""
        values = asdict(self) | {"source": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def write_states(
    captions: Iterable[str],
    out: Path,
    encoder: StateEncoder,
    longest: int,
    worker: tuple[int, int] = (0, 1),
    on_progress: Report = lambda done, total: None,
    captions_a_shard: int = CAPTIONS_A_SHARD,
) -> tuple[TextHeader, int, int]:
    """Encode every different caption into ``out``; returns the header, how many shards were written, and how many
    captions of this worker's reach ``longest`` tokens.

    Captions of more than ``longest`` tokens are cut. ``on_progress`` gets (done, all) captions of this worker.
    ``ValueError`` if ``out`` holds states of another encoder or other captions, or there is no caption; ``DataError``
    naming the caption whose states are not finite.
    """
    mine, of = worker
    texts = sorted({caption for caption in captions if caption})
    if not texts:
        raise ValueError("no video has a caption (NAME.txt beside NAME.mp4; 'magi data captions' writes them)")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]
    header = TextHeader(encoder.id, encoder.source, encoder.width, longest, len(texts), digest, captions_a_shard)
    header = _claim(out, header)
    remove_leftovers(out)
    shards = range(mine, header.shards, of)
    parts = {shard: texts[shard * captions_a_shard : (shard + 1) * captions_a_shard] for shard in shards}
    done, total, written = 0, sum(map(len, parts.values())), 0
    for shard, part in parts.items():
        if not _is_complete(out, shard, header):
            _write_shard(out, shard, part, encoder, header, lambda here, before=done: on_progress(before + here, total))
            written += 1
        done += len(part)
        on_progress(done, total)
    lengths = [_read_table(out, shard, header)[0] for shard in shards]
    return header, written, sum(int((lengths_V >= longest).sum()) for lengths_V in lengths)


def _write_shard(
    out: Path, number: int, texts: list[str], encoder: StateEncoder, header: TextHeader, on_progress: Any
) -> None:
    states: list[Tensor] = []
    for first in range(0, len(texts), CAPTIONS_A_BATCH):
        states += encoder.states(texts[first : first + CAPTIONS_A_BATCH], header.longest, cut=True)
        on_progress(len(states))
    for text, states_LE in zip(texts, states, strict=True):
        if not bool(states_LE.isfinite().all()):
            raise DataError(f"{header.source}: states of {text[:40]!a} are not finite in float16; use another encoder")
    tensors = {
        "states_FE": torch.cat(states).half(),
        "lengths_V": torch.tensor([len(states_LE) for states_LE in states], dtype=torch.int32),
        "keys_VH": torch.from_numpy(np.frombuffer(b"".join(map(_key, texts)), np.uint8).reshape(-1, _KEY_BYTES).copy()),
    }
    write_tensors(_shard_path(out, number), tensors, {"settings": header.settings})


def is_states(folder: Path) -> bool:
    """Whether a folder holds states of captions, finished or not."""
    return (folder / HEADER_NAME).is_file()


def read_header(folder: Path) -> TextHeader:
    """The header of a folder of states; ``DataError`` if it has none that can be read."""
    path = folder / HEADER_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file, so {folder} holds no states of captions; make them: magi encode-text")
    try:
        values = json.loads(read_text(path))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r} is not {FORMAT}")
        header = TextHeader(**values)
        if min(header.width, header.longest, header.captions, header.captions_a_shard) < 1:
            raise ValueError("impossible sizes")
    except (OSError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: damaged or of another version ({error}); delete the folder and {AGAIN}") from None
    return header


class TextStates:
    """Captions to their states, read from a folder when they are asked for; 40 bytes a caption are in memory.

    ``DataError`` if shards are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.header = folder, read_header(folder)
        missing = [number for number in range(self.header.shards) if not _shard_path(folder, number).is_file()]
        if missing:
            name = _shard_path(folder, missing[0]).name
            raise DataError(f"{folder}: {len(missing)} of {self.header.shards} shards missing, first {name}; {AGAIN}")
        keys, places = [], []
        for number in range(self.header.shards):
            lengths_V, keys_V = _read_table(folder, number, self.header)
            first_V = np.cumsum(lengths_V) - lengths_V
            keys.append(keys_V)
            places.append(np.stack([np.full(len(keys_V), number), first_V, lengths_V], axis=1))
        keys_V = np.concatenate(keys)
        order_V = np.argsort(keys_V)
        self._keys_V, self._places_V3 = keys_V[order_V], np.concatenate(places)[order_V].astype(np.int64)
        self._maps: dict[int, Any] = {}

    @property
    def id(self) -> str:
        """Names the encoder."""
        return self.header.encoder

    @property
    def choice(self) -> FrozenChoice:
        """The encoder, as a model that reads these states remembers it."""
        header = self.header
        return FrozenChoice(header.encoder, header.source, header.width, header.longest)

    def check(self, model: ModelConfig, captions: Iterable[str]) -> None:
        """``ValueError`` if a model cannot read these states, ``DataError`` if some of ``captions`` have none."""
        header = self.header
        if header.width != model.text_width:
            raise ValueError(f"{self.folder}: states of {header.width} numbers; set --model.text-width {header.width}")
        if header.longest > model.text_length:
            raise ValueError(
                f"{self.folder}: states of up to {header.longest} tokens, but model.text_length {model.text_length}; "
                f"set it to {header.longest}"
            )
        missing = [caption for caption in set(captions) if caption not in self]
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} captions have no states, as {min(missing)[:60]!a}: they are other ones "
                f"than were encoded; {AGAIN} into another folder"
            )

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __getitem__(self, caption: str | None) -> NDArray[np.float32]:
        """states_LE of a caption, (0, E) for none; ``DataError`` for one that was not encoded."""
        if not caption:
            return np.zeros((0, self.header.width), np.float32)
        place = self._find(caption)
        if place is None:
            raise DataError(f"{self.folder}: no states of the caption {caption[:60]!a}; {AGAIN} into another folder")
        shard, first, length = self._places_V3[place].tolist()
        if shard not in self._maps:
            self._maps[shard] = _open(self.folder, shard, self.header).get_slice("states_FE")
        states_LE: Tensor = self._maps[shard][first : first + length]
        if not bool(states_LE.isfinite().all()):
            raise DataError(f"{self.folder}: states of {caption[:60]!a} are not finite; delete the folder and {AGAIN}")
        return states_LE.float().numpy()

    def _find(self, caption: str) -> int | None:
        key = np.frombuffer(_key(caption), f"S{_KEY_BYTES}")[0]
        place = int(np.searchsorted(self._keys_V, key))
        return place if place < len(self._keys_V) and self._keys_V[place] == key else None

    def __getstate__(self) -> dict[str, Any]:
        """Maps stay in their process; a loader's process makes its own."""
        return self.__dict__ | {"_maps": {}}


def _key(caption: str) -> bytes:
    return hashlib.sha256(caption.encode()).digest()[:_KEY_BYTES]


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.safetensors"


def _claim(out: Path, header: TextHeader) -> TextHeader:
    """Write the header, or take the one there if it says the same but for where the encoder lay."""
    if is_states(out):
        found = read_header(out)
        for name, asked in asdict(header).items():
            was = getattr(found, name)
            if name != "source" and was != asked:
                what = "other captions" if name in ("digest", "captions") else f"{name} {was}, asked {asked}"
                raise ValueError(f"{out / HEADER_NAME}: these states have {what}; choose another folder")
        return found
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{out}: is a file, not a folder; choose another name") from None
    write_text(out / HEADER_NAME, json.dumps(asdict(header), indent=1))
    return header


def _is_complete(out: Path, number: int, header: TextHeader) -> bool:
    if not _shard_path(out, number).is_file():
        return False
    try:
        _read_table(out, number, header)
    except DataError:
        return False
    return True


def _open(folder: Path, number: int, header: TextHeader) -> Any:
    """A shard, mapped into memory; ``DataError`` if it is damaged, ``ValueError`` if it is another folder's."""
    path = _shard_path(folder, number)
    try:
        with utf8_name(path) as name:
            file = safe_open(name, framework="pt")
        found = (file.metadata() or {}).get("settings")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); {AGAIN}") from None
    if found != header.settings:
        raise ValueError(f"{path}: belongs to other settings than {HEADER_NAME} in its folder; remove it")
    return file


def _read_table(folder: Path, number: int, header: TextHeader) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    """lengths_V and keys_V of a shard, whose shapes are checked."""
    file, path = _open(folder, number, header), _shard_path(folder, number)
    count = min(header.captions_a_shard, header.captions - number * header.captions_a_shard)
    try:
        lengths_V, keys_VH = (file.get_tensor(name).numpy() for name in ("lengths_V", "keys_VH"))
        shape = tuple(file.get_slice("states_FE").get_shape())
    except SafetensorError as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())[:120]}); {AGAIN}") from None
    expected = (int(lengths_V.sum()), header.width)
    if lengths_V.shape != (count,) or keys_VH.shape != (count, _KEY_BYTES) or shape != expected or lengths_V.min() < 1:
        raise DataError(f"{path}: damaged, it does not hold what {HEADER_NAME} says; {AGAIN}")
    return lengths_V.astype(np.int64), np.ascontiguousarray(keys_VH).view(f"S{_KEY_BYTES}").ravel()
