"""A frozen text encoder of Hugging Face's ``transformers``: T5, UMT5, the text side of CLIP, or any AutoModel.

It comes from a local folder or a hub id, and is an extra ('text'), imported when an encoder is loaded. Weights are read
from safetensors alone and code of a repository is never run. A text becomes its last hidden states; which encoder made
them is said by an id of its weights and its tokenizer, and another one's are refused wherever they would be mixed.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from magi.errors import CheckpointError, DataError
from magi.weights import HUB_ID, download, weights_hash

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", *_TOKENIZER_FILES)
_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
"""Where an AutoModel would take more than the text encoder, by ``model_type``."""
_UNUSED = "pooler."
"""What a checkpoint may lack: it follows after the states."""
_LARGEST = torch.finfo(torch.float16).max


class FrozenEncoder:
    """Texts to states; ``source`` is where it was loaded from, ``id`` names its weights and tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, source: str, id: str) -> None:
        self.model, self.tokenizer, self.source, self.id = model, tokenizer, source, id

    @classmethod
    def load(cls, source: str, device: torch.device | None = None) -> Self:
        """From a folder or a hub id, float32.

        ``ValueError`` where it is neither, cannot be used as an encoder, or transformers is missing;
        ``CheckpointError`` for weights that are no safetensors, damaged or incomplete.
        """
        return cls(*load_library_model(source, "text encoder", _text_side, "a frozen text encoder", device))

    @property
    def width(self) -> int:
        """E, the width of a state."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def states(self, texts: Sequence[str], longest: int, cut: bool = False) -> list[Tensor]:
        """The states_LE (float16, on the CPU) of each text, L its tokens, those that the tokenizer adds among them.

        A text of more than ``longest`` tokens, or more than the encoder reads, is cut there if ``cut``, else a
        ``ValueError``. ``DataError`` names a text whose states are not finite in float16.
        """
        limits = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", longest))
        longest = min(longest, *limits)
        ids = self.tokenizer(list(texts), truncation=cut, max_length=longest if cut else None, verbose=False).input_ids
        for text, found in zip(texts, ids, strict=True):
            if len(found) > longest:
                raise ValueError(f"text of {len(found):,} tokens, {text[:40]!a}; {longest} are read, make it shorter")
        width = max(1, *map(len, ids))
        ids_BL = torch.zeros(len(ids), width, dtype=torch.long)
        attend_BL = torch.zeros_like(ids_BL)
        for row, found in enumerate(ids):
            ids_BL[row, : len(found)] = torch.tensor(found, dtype=torch.long)
            attend_BL[row, : len(found)] = 1
        device = self.model.device
        output = self.model(input_ids=ids_BL.to(device), attention_mask=attend_BL.to(device))
        states_BLE = output.last_hidden_state.float().cpu()
        for text, found, states_LE in zip(texts, ids, states_BLE, strict=True):
            if not bool((states_LE[: len(found)].abs() <= _LARGEST).all()):
                raise DataError(f"{self.source}: states of {text[:40]!a} are not finite in float16; use another")
        return [states_LE[: len(found)].half() for found, states_LE in zip(ids, states_BLE, strict=True)]


def _text_side(config: Any) -> str:
    """The class of a model's text encoder; ``ValueError`` where an AutoModel would take a decoder with it."""
    name = _CLASSES.get(config.model_type, "AutoModel")
    if name == "AutoModel" and getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"a {config.model_type} has a decoder, expected {', '.join(_CLASSES)} or an encoder")
    return name


def load_library_model(
    source: str, what: str, class_of: Callable[[Any], str], use: str, device: torch.device | None = None
) -> tuple[Any, Any, str, str]:
    """A model of transformers from a folder or a hub id, float32, for sampling alone; its tokenizer, source and id.

    ``class_of`` tells the class from the config, or raises ``ValueError`` for one that will not do. ``ValueError`` also
    where it is no ``what`` or transformers, which ``use`` needs, is missing; ``CheckpointError`` for weights that are
    no safetensors, damaged or incomplete.
    """
    library, folder = _library(use), _find(source, what)
    try:
        config = library.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        name = class_of(config)
        tokenizer = library.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of any library below: whatever a folder lacks
        raise ValueError(f"{source}: no {what} ({_short(error)})") from None
    model, unused = _read_weights(getattr(library, name), folder)
    state = {key: value for key, value in model.state_dict().items() if key not in unused}
    id = f"{config.model_type}-{weights_hash(state)[:16]}-{_tokenizer_hash(folder)}"
    return model.to(device or torch.device("cpu")).eval().requires_grad_(False), tokenizer, source, id


def _library(use: str) -> Any:
    """Hugging Face's transformers, silent; ``ValueError`` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{use} needs transformers; pip install -e '.[text]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _find(source: str, what: str) -> Path:
    """Folder of a model of transformers, from the hub if it is a hub id; ``CheckpointError`` for pickled weights."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.exists() or not HUB_ID.fullmatch(source):
            raise ValueError(f"{source}: no such folder; expected that of a {what}, or a hub id owner/name")
        folder = download(source, _PATTERNS, source)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source}: no {what}, it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{source}: no .safetensors; other weights are refused: reading them can run code")
    return folder


def _read_weights(kind: Any, folder: Path) -> tuple[Any, set[str]]:
    """The model, and the names of what its checkpoint lacks and nothing here needs."""
    with torch.random.fork_rng(devices=[]):  # layers draw initial weights, only to be overwritten
        try:
            model, found = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # of any library below
            raise CheckpointError(f"{folder}: weights cannot be read ({_short(error)})") from None
    unused = {name for name in found["missing_keys"] if name.startswith(_UNUSED)}
    wrong = sorted(map(str, [*(found["missing_keys"] - unused), *found["mismatched_keys"]]))
    if wrong:
        raise CheckpointError(f"{folder}: weights of another architecture: {len(wrong)} missing, as {wrong[0]:.80}")
    broken = [name for name, value in model.state_dict().items() if name not in unused and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{folder}: non-finite weights in {broken[0]}")
    return model, unused


def _tokenizer_hash(folder: Path) -> str:
    """Of the files that a tokenizer is read from, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _short(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
