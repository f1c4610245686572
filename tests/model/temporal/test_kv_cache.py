"""What is appended is what is read, finished frames stay, and the length is the same number on host and device."""

import pytest
import torch

from magi.model.temporal.kv_cache import KVCache


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_appended_frames_come_back_after_those_before_them() -> None:
    cache = KVCache.allocate(2, 3, 4, 5, 6, like=torch.zeros(1))
    keys, values = normal(2, 3, 4, 5, 6).unbind(0)
    for first, last in ((0, 2), (2, 5)):
        for layer in (0, 1):
            got = cache.layer(layer).append(keys[:, :, first:last] + layer, values[:, :, first:last] - layer)
            assert torch.equal(got[0], keys[:, :, :last] + layer)
            assert torch.equal(got[1], values[:, :, :last] - layer)
        cache.advance(last - first)
    assert cache.length == int(cache.length_1) == cache.capacity == 5
    assert torch.equal(cache.stored[1, :, :5, 0].transpose(1, 2), keys + 1)
    assert torch.equal(cache.stored[1, :, :5, 1].transpose(1, 2), values - 1)


def test_scratch_after_the_last_frame_leaves_no_trace() -> None:
    cache = KVCache.allocate(1, 2, 2, 1, 4, like=torch.zeros(1))
    first = normal(2, 2, 1, 4)
    cache.layer(0).append(first, first)
    cache.advance(1)
    keys, _ = cache.layer(0).append(first + 1, first + 2)
    assert torch.equal(keys[:, :, 1:], first + 1)
    assert torch.equal(cache.stored[0, :, :1, 0].transpose(1, 2), first)
    with pytest.raises(AssertionError, match="cache of 1 frames is full"):
        cache.layer(0).append(torch.cat([first, first], dim=2), torch.cat([first, first], dim=2))
    with pytest.raises(AssertionError):
        cache.advance(1)


def test_rewinding_changes_the_length_everywhere() -> None:
    cache = KVCache.allocate(1, 1, 1, 3, 2, like=torch.zeros(1))
    cache.rewind(2)
    assert cache.length == int(cache.length_1) == 2
    cache.clear()
    assert cache.length == int(cache.length_1) == 0
