"""Text as condition tokens: what they depend on and what not, and what a model makes of them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magi.config import LatentShape, ModelConfig
from magi.model.conditioning import Conditioning, Conditions
from magi.model.magi import Magi
from magi.model.teacher_forcing import complete_teacher_forcing
from magi.model.text import BUCKETS, GRAMS, hashed_grams, no_text
from magi.text.bytes import byte_text
from tests.model.test_conditioning import FRAMES, prediction

SHAPE = {"width": 16, "blocks": 2, "heads": 2, "head_width": 16, "head_blocks": 1, "frames": FRAMES, "dropout": 0.0}
BYTES = ModelConfig(**SHAPE, text_encoder="bytes", text_tokens=3, text_length=12)  # type: ignore[arg-type]
FROZEN = ModelConfig(**SHAPE, text_encoder="frozen", text_tokens=3, text_length=12, text_width=6)  # type: ignore[arg-type]
CONFIGS = pytest.mark.parametrize("config", [BYTES, FROZEN], ids=["bytes", "frozen"])


def text_of(config: ModelConfig, lengths: list[int]) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    if config.text_encoder == "bytes":
        text_BLE = torch.randint(1, 257, (len(lengths), max(lengths), 1), generator=draw)
    else:
        text_BLE = torch.randn(len(lengths), max(lengths), config.text_width, generator=draw, dtype=torch.float64)
    for text_LE, length in zip(text_BLE, lengths, strict=True):
        text_LE[length:] = 0
    return text_BLE


def tiny_model(config: ModelConfig) -> Magi:
    model = Magi(config, LatentShape(frames=FRAMES, channels=2, height=4, width=4), torch.Generator().manual_seed(0))
    for parameter in [*model.head.parameters(), *model.conditioning.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.double()


def given(text_BLE: Tensor) -> Conditions:
    return Conditions(torch.tensor([1, 7]), torch.tensor([1, 5]), text_BLE=text_BLE)


def tokens_of(model: Magi, text_BLE: Tensor) -> Tensor:
    assert model.conditioning.text is not None
    with torch.no_grad():
        return model.conditioning.text(text_BLE)


@CONFIGS
def test_padding_changes_nothing_and_no_clip_reads_anothers_text(config: ModelConfig) -> None:
    model, text_BLE = tiny_model(config), text_of(config, [5, 9])
    together = tokens_of(model, text_BLE)
    assert together.shape == (2, 3, 16)
    torch.testing.assert_close(tokens_of(model, F.pad(text_BLE, (0, 0, 0, 3))), together, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens_of(model, text_BLE[:1, :5])[0], together[0], rtol=0, atol=1e-12)
    other_BLE = text_BLE.clone()
    other_BLE[1, 4] = text_BLE[1, 5]
    changed = tokens_of(model, other_BLE)
    assert torch.equal(changed[0], together[0]) and not torch.allclose(changed[1], together[1], atol=1e-3)


@CONFIGS
def test_every_place_and_their_order_count(config: ModelConfig) -> None:
    model, text_BLE = tiny_model(config), text_of(config, [9, 9])
    whole = tokens_of(model, text_BLE)
    for place in range(9):
        other_BLE = text_BLE.clone()
        other_BLE[:, place] = text_BLE[:, (place + 1) % 9]
        assert float((tokens_of(model, other_BLE) - whole).abs().max()) > 1e-3, place
    assert not torch.allclose(tokens_of(model, text_BLE.flip(1)), whole, atol=1e-3)


@CONFIGS
def test_null_is_no_text_and_the_negative_text_replaces_it(config: ModelConfig) -> None:
    model, conditions = tiny_model(config), given(text_of(config, [5, 9]))
    nothing_BLE = conditions.null(config).text_BLE
    assert conditions.can_guide and nothing_BLE is not None and not nothing_BLE.any()
    torch.testing.assert_close(tokens_of(model, nothing_BLE), tokens_of(model, no_text(config, 2)).double())
    negative_BLE = text_of(config, [9, 2])
    assert torch.equal(replace(conditions, negative_BLE=negative_BLE).null(config).text_BLE, negative_BLE)


@CONFIGS
def test_text_reaches_every_frame_of_its_clip_alone(config: ModelConfig) -> None:
    model, text_BLE = tiny_model(config), text_of(config, [5, 9])
    other_BLE = text_BLE.clone()
    other_BLE[0, 0] = text_BLE[0, 1]
    one = prediction(model, complete_teacher_forcing, 1, given(text_BLE))
    other = prediction(model, complete_teacher_forcing, 1, given(other_BLE))
    assert torch.equal(one[1], other[1])
    assert bool(((one[0] - other[0]).abs().amax(dim=(1, 2)) > 1e-4).all())


@pytest.mark.parametrize("changed", range(FRAMES))
def test_a_text_of_a_frame_is_causal(changed: int) -> None:
    model = tiny_model(BYTES)
    text_BTLE = text_of(BYTES, [5, 9])[:, None].repeat(1, FRAMES, 1, 1)
    constant = prediction(model, complete_teacher_forcing, 1, given(text_BTLE[:, 0]))
    one = prediction(model, complete_teacher_forcing, 1, given(text_BTLE))
    torch.testing.assert_close(one, constant)
    text_BTLE[0, changed, 0] = 1 + text_BTLE[0, changed, 0] % 256
    change_T = (prediction(model, complete_teacher_forcing, 1, given(text_BTLE))[0] - one[0]).abs().amax(dim=(1, 2))
    assert torch.equal(change_T[:changed], torch.zeros(changed, dtype=torch.float64))
    assert bool((change_T[changed:] > 1e-6).all())


def test_encoded_text_is_the_text_and_is_not_read_again() -> None:
    conditioning = Conditioning(BYTES)
    torch.nn.init.normal_(conditioning.text.query_KD)  # type: ignore[union-attr]
    conditions = replace(given(text_of(BYTES, [5, 9])), negative_BLE=text_of(BYTES, [1, 2]))
    encoded = conditioning.encode_text(conditions)
    assert encoded.text_BLE is None and encoded.negative_BLE is None and encoded.can_guide
    assert torch.equal(conditioning(encoded)[0], conditioning(conditions)[0])
    conditioning.text.forward = None  # type: ignore[union-attr, method-assign, assignment]
    assert conditioning(encoded)[0].shape == (2, 1, 4, 16)


def test_an_n_gram_has_one_row_wherever_it_stands() -> None:
    rows = {text: hashed_grams(byte_text([text], 40)[..., 0]) for text in ("a seven moves", "moves: seven", "seven")}
    at = {text: text.index("seven") for text in rows}
    for size, *three in zip(GRAMS, *rows.values(), strict=True):
        half = size // 2
        inside = [row[0, at[text] + half : at[text] + 5 - half].tolist() for text, row in zip(rows, three, strict=True)]
        assert inside[0] == inside[1] == inside[2] and len(set(inside[0])) == 5 - 2 * half
        assert all(bool(((row >= 0) & (row < BUCKETS)).all()) for row in three)
    # A text begins and ends with a space, so that a word at its end is the one in its middle.
    end, middle = (hashed_grams(byte_text([text], 40)[..., 0])[0] for text in ("up 7", "7 up"))
    assert end[0, 3] == middle[0, 0]


def test_captions_differ_from_the_first_step_on() -> None:
    """A text that hardly reaches its tokens is not learned: at small tables its place, of size 1, drowned it."""
    model = Magi(
        ModelConfig(width=64, heads=2, text_encoder="bytes", text_tokens=4, dropout=0.0),
        LatentShape(frames=4, channels=2, height=4, width=4),
        torch.Generator().manual_seed(0),
    )
    texts = ["a bold seven moves up", "a bold three moves up", "a bold seven moves down", "a thin seven moves up"]
    tokens_BKD = tokens_of(model, byte_text(texts, 40))
    distance = (tokens_BKD[0] - tokens_BKD[1:]).square().mean(dim=(1, 2)).sqrt()
    assert float(distance.min()) > 0.2, "of tokens of size 1"


@pytest.mark.parametrize(("encoder", "width"), [("frozen", 0), ("bytes", 8), ("", 8)])
def test_only_a_frozen_encoder_has_a_width(encoder: str, width: int) -> None:
    with pytest.raises(ValueError, match=f"text_width {width}: the width of states with text_encoder frozen, else 0"):
        ModelConfig(text_encoder=encoder, text_width=width)  # type: ignore[arg-type]
