"""The built-in encoder: bytes plus one, zeros behind them, and what is too long."""

import pytest

from magi.text.bytes import byte_text


def test_bytes_of_utf8_plus_one_then_zeros() -> None:
    text_BLE = byte_text(["a\u00fc", "", "\U0001f43b"], 128)
    assert text_BLE[..., 0].tolist() == [[98, 0xC3 + 1, 0xBC + 1, 0], [0] * 4, [0xF1, 0xA0, 0x91, 0xBC]]
    assert byte_text(["", ""], 128).shape == (2, 1, 1)


def test_no_byte_is_the_zero_of_the_padding() -> None:
    assert byte_text(["\x00"], 4)[0, 0, 0] == 1


def test_a_long_text_is_refused_or_cut() -> None:
    with pytest.raises(ValueError, match=r"text of 10,000 bytes; the model reads 128, make it shorter"):
        byte_text(["a", "b" * 10_000], 128)
    assert byte_text(["b" * 10_000], 128, cut=True).shape == (1, 128, 1)
    assert byte_text(["b" * 128], 128).shape == (1, 128, 1)
