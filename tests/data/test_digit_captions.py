"""The grammar of captions: what a sentence names is true, and nothing else is said."""

import re
from dataclasses import replace

import numpy as np
import pytest

from magi.data.digit_captions import NAMED_SHARE, PHRASES, VALUES, DigitAttributes, Wording
from tests.fakes.caption_reader import values_read

EXAMPLE = DigitAttributes("7", "bold", "small", "dim", "upper left", "fast")
ALL = dict.fromkeys(VALUES, 1.0)


def wordings(count: int, named: dict[str, float] | None = None) -> list[Wording]:
    rng = np.random.default_rng(5)
    return [Wording.drawn(rng, named or NAMED_SHARE) for _ in range(count)]


def drawn_attributes(rng: np.random.Generator) -> DigitAttributes:
    return DigitAttributes(**{name: values[int(rng.integers(len(values)))] for name, values in VALUES.items()})


def test_a_caption_says_what_it_names_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for wording in wordings(2000):
        attributes = drawn_attributes(rng)
        read = values_read(wording.caption(attributes))
        assert read == {name: getattr(attributes, name) for name in wording.named}, wording.caption(attributes)


def test_every_phrase_belongs_to_one_value_and_every_value_has_as_many() -> None:
    phrases = [phrase for of in PHRASES.values() for said in of.values() for phrase in said]
    assert len(phrases) == len(set(phrases))
    for name, of in PHRASES.items():
        assert tuple(of) == VALUES[name] and len({len(said) for said in of.values()}) == 1


def test_two_captions_of_a_wording_differ_by_the_phrase_of_what_differs() -> None:
    for wording in wordings(300, ALL):
        for name, values in VALUES.items():
            other = replace(EXAMPLE, **{name: values[0]})
            before, after = (
                text.lower()
                .replace("an ", "a ")
                .replace(PHRASES[name][getattr(said, name)][wording.synonyms[name]], "_")
                for said, text in ((said, wording.caption(said)) for said in (EXAMPLE, other))
            )
            assert before == after


def test_every_attribute_is_dropped_at_times_and_the_digit_seldom() -> None:
    drawn = wordings(4000)
    for name, share in NAMED_SHARE.items():
        assert np.mean([name in wording.named for wording in drawn]) == pytest.approx(share, abs=0.03)
    assert NAMED_SHARE["digit"] > max(share for name, share in NAMED_SHARE.items() if name != "digit")
    assert wordings(50, dict.fromkeys(VALUES, 0.0))[0].named == frozenset()


def test_captions_vary_and_are_one_short_line() -> None:
    captions = [wording.caption(EXAMPLE) for wording in wordings(1000, ALL)]
    assert len(set(captions)) > 950
    assert max(len(caption.encode()) for caption in captions) <= 128
    assert all(caption == " ".join(caption.split()) and ",." not in caption for caption in captions)
    assert not any(caption.endswith(",") for caption in captions)


def test_an_eight_is_an_eight_and_a_one_is_a_one() -> None:
    for wording in wordings(500, dict.fromkeys(VALUES, 0.0) | {"digit": 1.0}):
        for digit in "18":
            text = wording.caption(replace(EXAMPLE, digit=digit)).lower()
            assert not re.search(r"\ba (eight|8)\b|\ban (one|1|digit|number|figure)\b", text), text


def test_a_value_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="size 'medium': expected one of small, large"):
        replace(EXAMPLE, size="medium")
