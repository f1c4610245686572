"""Gated linear attention: its weights by hand and by a plain scan, causality, and a state that never grows."""

import math

import pytest
import torch
from torch import Tensor

from magi.model.teacher_forcing import SlotPattern
from magi.model.temporal.gated_linear import (
    GATE_ROOT,
    LEAST_WEIGHT,
    GatedLinearAttention,
    LinearState,
    PutIn,
    mixture,
    put_in,
    recurrent_mixture,
)

ROWS, HEADS, FEATURES, WIDTH = 3, 2, 4, 10
COMPLETE, VIEWS = SlotPattern(causal=3, frames=4, views=1), SlotPattern(causal=2, frames=3, views=2)
MASKED, ONE = SlotPattern(causal=4), SlotPattern(causal=0, frames=1, views=1)
DTYPES = (torch.float64, torch.float32)
ALONE = SlotPattern(causal=2, frames=3, views=1, alone=2)
PATTERNS = [COMPLETE, VIEWS, ALONE, MASKED, ONE]


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(slots: int, seed: int = 0) -> tuple[Tensor, PutIn]:
    """Queries and what slots put in, of 3 rows, 2 heads, 4 features, values 5 wide."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(ROWS, HEADS, slots, size, generator=generator, dtype=torch.float64)
        for size in (FEATURES, FEATURES, WIDTH // HEADS)
    )
    log_gate = -torch.rand(ROWS, HEADS, slots, generator=generator, dtype=torch.float64)
    return query.softmax(-1), PutIn(key.softmax(-1), value, log_gate)


def test_two_frames_by_hand() -> None:
    """One feature, f the identity: queries 1, keys 1 and 3 of finished frames, 2 of the predicted one."""
    pattern = SlotPattern(causal=2, frames=3, views=1)
    key, value = row(1, 3, 2, 2, 2)[:, None], row(10, 20, 50, 50, 50)[:, None]
    ungated = mixture(torch.ones_like(key), PutIn(key, value, torch.zeros(5, dtype=torch.float64)), pattern)
    means = [10, (10 + 60) / 4, 50, (10 + 100) / 3, (10 + 60 + 100) / 6]
    torch.testing.assert_close(ungated[:, 0], row(*means), atol=0, rtol=2 * LEAST_WEIGHT)
    # Each slot halves all that came before it, and nothing of its own.
    gated = mixture(torch.ones_like(key), PutIn(key, value, row(0.5, 0.5, 0.5, 0.5, 0.5).log()), pattern)
    means = [10, (5 + 60) / 3.5, 50, (5 + 100) / 2.5, (2.5 + 30 + 100) / (0.25 + 1.5 + 2)]
    torch.testing.assert_close(gated[:, 0], row(*means), atol=0, rtol=2 * LEAST_WEIGHT)


def scanned(query: Tensor, put: PutIn, pattern: SlotPattern) -> Tensor:
    """The definition: a memory goes over the causal slots; a predicted slot reads the one before its frame."""
    value_1 = torch.cat([put.value, torch.ones_like(put.value[..., :1])], dim=-1)

    def after(memory: Tensor, slot: int) -> Tensor:
        gate = put.log_gate[..., slot, None, None].exp()
        return gate * memory + put.key[..., slot, :, None] * value_1[..., slot, None, :]

    memories = [put.key.new_zeros(ROWS, HEADS, FEATURES, value_1.shape[-1])]
    for slot in range(pattern.causal):
        memories.append(after(memories[-1], slot))
    frames = [*range(pattern.causal), *(list(range(pattern.frames)) * pattern.views), *[0] * pattern.alone]
    read = [
        torch.einsum("rhk,rhkv->rhv", query[..., slot, :], after(memories[frame], slot))
        for slot, frame in enumerate(frames)
    ]
    read_RhSv = torch.stack(read, dim=2)
    return read_RhSv[..., :-1] / (read_RhSv[..., -1:] + LEAST_WEIGHT)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_quadratic_form_is_the_scan(pattern: SlotPattern) -> None:
    query, put = drawn(pattern.slots)
    torch.testing.assert_close(mixture(query, put, pattern), scanned(query, put, pattern), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("pattern", [COMPLETE, VIEWS], ids=str)
def test_training_without_the_first_queries_is_its_last_slots(pattern: SlotPattern) -> None:
    layer = a_layer()
    x_BSPD = torch.randn(2, pattern.slots, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, last = layer(x_BSPD, pattern), layer(x_BSPD, pattern, first_query=pattern.causal)
    torch.testing.assert_close(last, whole[:, pattern.causal :], atol=1e-12, rtol=1e-12)


def a_layer() -> GatedLinearAttention:
    torch.manual_seed(0)
    return GatedLinearAttention(WIDTH, HEADS, dropout=0.0, features=FEATURES).double().eval().requires_grad_(False)


def test_frames_written_together_or_one_by_one_leave_the_same_memory() -> None:
    layer, rows = a_layer(), 2 * 3
    x_BTPD = torch.randn(2, 5, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together, single = (layer.new_state(1, rows, 5, like=x_BTPD) for _ in range(2))
    for frames in x_BTPD.split([1, 3, 1], dim=1):
        mixed_BTPD = layer.observe(frames, together.layer(0))
        together.advance(frames.shape[1])
        for number, frame in enumerate(frames.split(1, dim=1)):
            one = layer.observe(frame, single.layer(0))
            single.advance(1)
            torch.testing.assert_close(one[:, 0], mixed_BTPD[:, number], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(together.memory, single.memory, atol=1e-12, rtol=1e-12)
    assert together.length == single.length == 5
    with pytest.raises(AssertionError):
        single.advance(1)


def test_what_is_written_counts_once_the_state_advances() -> None:
    layer = a_layer()
    x_BTPD = torch.randn(2, 2, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = layer.new_state(1, 6, 4, like=x_BTPD)
    layer.observe(x_BTPD, state.layer(0))
    state.advance(2)
    before = state.memory.clone()
    first = layer.predict(x_BTPD[:, :1], state.layer(0))
    for _ in range(2):  # as the warm-ups of a recorded pass do
        layer.prepared(None, kernels=False).observe(x_BTPD[:, 0], state.layer(0))
    assert torch.equal(state.memory, before) and torch.equal(layer.predict(x_BTPD[:, :1], state.layer(0)), first)
    state.advance(1)
    assert not torch.equal(state.memory, before)
    state.clear()
    torch.testing.assert_close(layer.predict(x_BTPD[:, :1], state.layer(0)), layer(x_BTPD[:, :1], ONE))


def test_a_frame_changes_nothing_before_it_to_the_bit() -> None:
    layer, pattern = a_layer().float(), COMPLETE
    x_BSPD = torch.randn(2, pattern.slots, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    changed_BSPD = x_BSPD.clone()
    changed_BSPD[:, 1] += 1  # the second finished frame
    before, after = layer(x_BSPD, pattern), layer(changed_BSPD, pattern)
    same = [slot for slot in range(pattern.slots) if torch.equal(before[:, slot], after[:, slot])]
    assert same == [0, 3, 4], "finished frame 1 sees itself; predicted frames 1 and 2 do not see finished frame 2"


def test_a_gate_at_first_halves_a_frame_in_sixteen() -> None:
    put = put_in(torch.zeros(1, 1, HEADS * FEATURES + WIDTH + HEADS), HEADS, FEATURES)
    assert GATE_ROOT * float(put.log_gate[0, 0, 0]) == pytest.approx(math.log(0.5))
    assert torch.equal(put.key, torch.full((1, HEADS, 1, FEATURES), 1 / FEATURES))


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_extreme_features_and_gates_stay_finite_and_have_gradients(scale: float) -> None:
    """Features that do not overlap have weights of zero, a shut gate forgets all."""
    layer = a_layer().float()
    x_BSPD = scale * torch.randn(2, COMPLETE.slots, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    x_BSPD.requires_grad_()
    mixed = layer(x_BSPD, COMPLETE)
    mixed.square().mean().backward()
    assert x_BSPD.grad is not None and bool(x_BSPD.grad.isfinite().all()) and bool(mixed.isfinite().all())


def test_the_state_is_float32_at_least_and_as_large_for_a_million_frames() -> None:
    like = torch.zeros(1, dtype=torch.bfloat16)
    few, many = (LinearState.allocate(2, ROWS, HEADS, FEATURES, 5, frames, like) for frames in (3, 1_000_000))
    assert few.memory.dtype == torch.float32 and few.nbytes == many.nbytes and many.capacity == 1_000_000
    assert few.nbytes == 4 * 2 * ROWS * HEADS * (FEATURES * 6 + FEATURES + 7)
    assert few.rows == ROWS


def test_thousands_of_frames_in_float32_are_those_in_float64() -> None:
    """What rounding does to a memory does not add up: it fades as the frames do."""
    wide, narrow = (LinearState.allocate(1, ROWS, HEADS, FEATURES, 5, 5000, row(0).to(dtype)) for dtype in DTYPES)
    for number in range(3000):
        _, put = drawn(1, seed=number)
        slow = PutIn(put.key, put.value, put.log_gate / 100)
        for state in (wide, narrow):
            state.layer(0).write(slow)
            state.advance(1)
    query, put = drawn(1, seed=9999)
    expected = recurrent_mixture(query, put, wide.layer(0).memory)
    got = recurrent_mixture(query, put, narrow.layer(0).memory.double())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
