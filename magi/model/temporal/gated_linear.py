"""Gated linear attention along time at one position: a state of constant size for keys and values (not in the paper).

As in softmax attention, a slot's result is a weighted mean of the values that it may see. Here the weight factors:

    weight(slot q, slot s) = f(query_q) . f(key_s) * gate_r over the slots r after s, up to q

f is a softmax over the features of a head, so weights are positive and bounded (Shen et al., arXiv 1812.01243; chosen
among feature maps as Zhang et al., arXiv 2402.04347, advise). A gate is one number in (0, 1) a head and slot, computed
from the slot (Dao and Gu, arXiv 2405.21060), near 1 by the root of Yang et al. (arXiv 2312.06635): a head chooses how
long it remembers. So finished frames are to all later ones one matrix a head,

    memory_t = gate_t memory_(t-1) + f(key_t) [value_t, 1]^T

whose last column is the sum of weights. Training computes the weights (``mixture``, quadratic in the slots of a clip,
which are few); sampling keeps the memory. Gates tell earlier from later, so the model has no positions in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magi.model.packed_linear import packed
from magi.model.teacher_forcing import SlotPattern

GATE_ROOT = 16
"""At first a gate is a half to this root, so a frame counts half after as many frames."""
LEAST_WEIGHT = 1e-6
"""Added to the sum of weights, which may be zero by rounding."""


@dataclass(frozen=True)
class PutIn:
    """What slots put in, in float32 at least: ``key`` (..., slots, K) after f, ``value`` (..., slots, V), ``log_gate``
    (..., slots)."""

    key: Tensor
    value: Tensor
    log_gate: Tensor


class GatedLinearAttention(nn.Module):
    """Along the slots at each position, (B, S, P, D) -> (B, Q, P, D), ``features`` K a head; a ``TemporalMixer``."""

    def __init__(self, width: int, heads: int, dropout: float, features: int) -> None:
        super().__init__()
        self.heads, self.features = heads, features
        # Columns: queries, keys, values, gates.
        self.columns = nn.Linear(width, 2 * heads * features + width + heads)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSPD: Tensor, attend: SlotPattern | Tensor, first_query: int = 0) -> Tensor:
        """Mix slots ``first_query``.. with those that they may see, by a pattern: gates need an order."""
        assert isinstance(attend, SlotPattern), "gates are products along a pattern of slots"
        return self._mix(x_BSPD, attend, first_query)

    def observe(self, x_BTPD: Tensor, layer: LayerMemory) -> Tensor:
        """Frames after those of the memory; frame i sees these and frames up to i. Writes them."""
        return self._mix(x_BTPD, SlotPattern(causal=x_BTPD.shape[1]), layer=layer)

    def predict(self, x_BTPD: Tensor, layer: LayerMemory) -> Tensor:
        """One slot that sees the memory and itself."""
        return self._mix(x_BTPD, SlotPattern(causal=0, frames=1, views=1), layer=layer)

    def new_state(self, layers: int, rows: int, frames: int, like: Tensor) -> LinearState:
        """An empty memory, as large for any number of ``frames``."""
        value_width = self.proj.in_features // self.heads
        return LinearState.allocate(layers, rows, self.heads, self.features, value_width, frames, like)

    def prepared(self, dtype: torch.dtype | None, kernels: bool) -> PreparedGatedLinear:
        """For sampling; there is no kernel."""
        return PreparedGatedLinear(self, dtype)

    def _mix(
        self, x_BSPD: Tensor, pattern: SlotPattern, first_query: int = 0, layer: LayerMemory | None = None
    ) -> Tensor:
        queries = self.heads * self.features
        weight, bias = self.columns.weight, self.columns.bias
        if first_query:  # of slots whose output nobody reads no queries
            query_BQPE = F.linear(x_BSPD[:, first_query:], weight[:queries], bias[:queries])
            put_BSPE = F.linear(x_BSPD, weight[queries:], bias[queries:])
        else:
            columns_BSPE = self.columns(x_BSPD)
            query_BQPE, put_BSPE = columns_BSPE[..., :queries], columns_BSPE[..., queries:]
        with torch.autocast(x_BSPD.device.type, enabled=False):
            query = _features(rearrange(query_BQPE, "B Q P (h k) -> B P h Q k", h=self.heads))
            put = put_in(rearrange(put_BSPE, "B S P e -> B P S e"), self.heads, self.features)
            memory = None if layer is None else layer.memory.unflatten(0, (len(x_BSPD), -1))
            mixed = mixture(query, put, pattern, memory)
        if layer is not None and pattern.causal:
            layer.write(put)
        return self.dropout(self.proj(rearrange(mixed, "B P h Q v -> B Q P (h v)").to(put_BSPE.dtype)))


def mixture(query: Tensor, put: PutIn, pattern: SlotPattern, memory: Tensor | None = None) -> Tensor:
    """The weighted means (..., Q, V) of the last Q slots of ``pattern``, all weights computed: the quadratic form.

    ``query`` (..., Q, K) is after f. ``memory`` (..., K, V + 1) is of the frames before the first slot.
    """
    causal, predicted = pattern.causal, pattern.slots - pattern.causal
    live = query.shape[-2] - predicted  # queries of causal slots
    key, own_key = put.key.split([causal, predicted], dim=-2)
    value, own_value = put.value.split([causal, predicted], dim=-2)
    log_gate, own_log_gate = put.log_gate.split([causal, predicted], dim=-1)
    # Logarithms of products of gates: from before the first slot to each causal one, and to each query.
    to_key = log_gate.cumsum(-1)
    past = torch.arange(causal, device=query.device)
    frame_U = pattern.past_counts(query.device)
    to_query = torch.cat([to_key[..., causal - live :], F.pad(to_key, (1, 0))[..., frame_U] + own_log_gate], dim=-1)
    seen = past < torch.cat([past[causal - live :] + 1, frame_U])[:, None]
    decay = (to_query[..., None] - to_key[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    weight = (query @ key.transpose(-1, -2)) * decay
    own = (query[..., live:, :] * own_key).sum(-1, keepdim=True)
    total = weight.sum(-1, keepdim=True) + F.pad(own, (0, 0, live, 0))
    mixed = weight @ value + F.pad(own * own_value, (0, 0, live, 0))
    if memory is not None:
        remembered = to_query.exp()[..., None] * (query @ memory)
        mixed, total = mixed + remembered[..., :-1], total + remembered[..., -1:]
    return mixed / (total + LEAST_WEIGHT)


def put_in(columns: Tensor, heads: int, features: int) -> PutIn:
    """What slots put in, (..., heads, slots, .), from columns of keys, values and gates (..., slots, .)."""
    keys = heads * features
    values = columns.shape[-1] - keys - heads
    key, value, gate = columns.split([keys, values, heads], dim=-1)
    return PutIn(
        _features(rearrange(key, "... S (h k) -> ... h S k", h=heads)),
        _wide(rearrange(value, "... S (h v) -> ... h S v", h=heads)),
        F.logsigmoid(_wide(gate)).transpose(-1, -2) / GATE_ROOT,
    )


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _features(x: Tensor) -> Tensor:
    """f."""
    return _wide(x).softmax(-1)


@dataclass
class LinearState:
    """``memory`` (layers, R, heads, K, V + 1) of the first ``length`` frames; ``newest`` is what the next one puts in.

    The latter (layers, R, heads, 1, K + V + 2) joins the memory once the state advances: keys, values, 1, log gates.
    Both stay at their place. ``capacity`` costs nothing.
    """

    memory: Tensor
    newest: Tensor
    capacity: int
    length: int = 0
    _several: Tensor | None = None

    @staticmethod
    def allocate(
        layers: int, rows: int, heads: int, features: int, value_width: int, capacity: int, like: Tensor
    ) -> LinearState:
        """Nothing remembered, on the device of ``like``; in float32 at least, or far frames would be rounded away."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        size = (layers, rows, heads)
        memory = like.new_zeros((*size, features, value_width + 1), dtype=dtype)
        return LinearState(memory, like.new_zeros((*size, 1, features + value_width + 2), dtype=dtype), capacity)

    @property
    def rows(self) -> int:
        """R."""
        return self.memory.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.memory.nbytes + self.newest.nbytes

    def layer(self, index: int) -> LayerMemory:
        """The part of one temporal layer."""
        return LayerMemory(self, index)

    def room(self, frames: int) -> Tensor:
        """Where as many new frames are written, (layers, R, heads, frames, K + V + 2)."""
        if frames == 1:
            return self.newest
        if self._several is None or self._several.shape[3] != frames:
            self._several = self.newest.new_zeros((*self.newest.shape[:3], frames, self.newest.shape[4]))
        return self._several

    def advance(self, frames: int) -> None:
        """Remember what ``frames`` new frames have written in every layer."""
        assert self.length + frames <= self.capacity, (self.length, frames, self.capacity)
        features = self.memory.shape[-2]
        key, value, log_gate = self.room(frames).flatten(0, 2).split([features, self.memory.shape[-1], 1], dim=-1)
        passed = log_gate.cumsum(1)
        faded_key = key * (passed[:, -1:] - passed).exp()
        memory = self.memory.flatten(0, 2)
        memory.mul_(passed[:, -1:].exp()).baddbmm_(faded_key.transpose(1, 2), value)
        self._several = None
        self.length += frames

    def clear(self) -> None:
        """Forget all frames; the memory stays where it is."""
        self.memory.zero_()
        self.length = 0


@dataclass(frozen=True)
class LayerMemory:
    """One temporal layer's part of a state."""

    state: LinearState
    index: int

    @property
    def memory(self) -> Tensor:
        """(R, heads, K, V + 1)."""
        return self.state.memory[self.index]

    def write(self, put: PutIn) -> None:
        """What new frames put in, (..., heads, frames, .) in all R rows; it counts once the state advances."""
        frames = put.key.shape[-2]
        parts = (put.key, F.pad(put.value, (0, 1), value=1.0), put.log_gate[..., None])
        room = self.state.room(frames)[self.index]
        room.copy_(torch.cat([part.reshape(*room.shape[:3], -1) for part in parts], dim=-1))


class PreparedGatedLinear:
    """One new slot of each row against the memory; a ``PreparedMixer``."""

    any_length = True

    def __init__(self, layer: GatedLinearAttention, dtype: torch.dtype | None) -> None:
        self.heads, self.features = layer.heads, layer.features
        self.columns, self.proj = packed(layer.columns, dtype), packed(layer.proj, dtype)

    def predict(self, normed: Tensor, layer: LayerMemory, rows_M: Tensor | None = None) -> Tensor:
        """Mix with the memory and the slot itself."""
        return self._mix(self.columns(normed), layer, rows_M)

    def observe(self, normed: Tensor, layer: LayerMemory) -> Tensor:
        """The same, and write what the slots put in."""
        columns = self.columns(normed)
        layer.write(self._put(columns))
        return self._mix(columns, layer)

    def write(self, normed: Tensor, layer: LayerMemory) -> None:
        """Write what the slots put in."""
        layer.write(self._put(self.columns(normed)))

    def _put(self, columns: Tensor) -> PutIn:
        rows = columns.flatten(0, -2)[:, None, self.heads * self.features :]
        return put_in(rows, self.heads, self.features)

    def _mix(self, columns: Tensor, layer: LayerMemory, rows_M: Tensor | None = None) -> Tensor:
        put = self._put(columns)
        query = columns.flatten(0, -2)[:, : self.heads * self.features].unflatten(-1, (self.heads, 1, self.features))
        memory = layer.memory if rows_M is None else layer.memory[rows_M]
        mixed_Rh1v = recurrent_mixture(_features(query), put, memory)
        return self.proj(mixed_Rh1v.to(columns.dtype).reshape(*columns.shape[:-1], -1))


def recurrent_mixture(query: Tensor, put: PutIn, memory: Tensor) -> Tensor:
    """``mixture`` of one predicted slot a row, (R, heads, 1, V), without what several slots need."""
    remembered = put.log_gate.exp()[..., None] * (query @ memory)
    own = (query * put.key).sum(-1, keepdim=True)
    return (remembered[..., :-1] + own * put.value) / (remembered[..., -1:] + own + LEAST_WEIGHT)
