"""Draws without state: the same for the same key, and as good as independent for any other."""

from collections import Counter
from itertools import pairwise

import numpy as np

from magi.seeding import bits, integer, permutation, posterior_noise


def test_bits_depend_on_every_part_of_the_key_and_on_their_order() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (2**63,), (2**64 - 1,)]
    assert len({bits(*key) for key in keys}) == len(keys)
    assert bits(3, 5, 7) == bits(3, 5, 7) and all(0 <= bits(n) < 2**64 for n in range(1000))


def test_bits_of_neighbours_share_nothing() -> None:
    """Each of 64 bits is set half of the time, and flips half of the time from one sample to the next."""
    words = [bits(0, sample, 1) for sample in range(4000)]
    for values in (words, [one ^ two for one, two in pairwise(words)]):
        share = np.array([[value >> bit & 1 for bit in range(64)] for value in values]).mean(0)
        assert np.abs(share - 0.5).max() < 0.04


def test_integers_are_uniform_and_reach_both_ends() -> None:
    counts = Counter(integer(-2, 4, 9, sample) for sample in range(7000))
    assert sorted(counts) == list(range(-2, 5))
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 22.5  # chi-squared of 6 degrees, p = 0.001
    assert integer(5, 5, 1) == 5


def test_permutations_are_of_all_places_and_differ_by_key() -> None:
    one, two = permutation(500, 0, 1, 3), permutation(500, 0, 2, 3)
    assert sorted(one) == sorted(two) == list(range(500)) and not np.array_equal(one, two)
    assert np.array_equal(one, permutation(500, 0, 1, 3))


def test_noise_is_that_of_its_sample_alone() -> None:
    assert posterior_noise((2, 3), 0, 5).equal(posterior_noise((2, 3), 0, 5))
    assert not posterior_noise((2, 3), 0, 5).equal(posterior_noise((2, 3), 0, 6))
