"""A plain masked-autoregressive sampler in the style of MAR's, for this model's weights: the baseline of the suite.

Written as a good user would write it who follows the published description (MAR, arXiv 2406.11838; KV cache as in
paper section 5): keys and values grow by concatenation, attention in time takes a dense mask, every denoising step runs
the whole head (timestep embedding, condition projection, modulations) on a batch that guidance doubles, takes its
coefficients from numpy arrays and draws its noise, and the tokens of an iteration are picked by a boolean mask. It
computes what ``magi.sampling`` computes, and a check of the suite holds it to that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from magi.bench.case import relative_error
from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.magi import Magi
from magi.model.objectives.ddpm import NoiseSchedule, cosine_schedule, respace
from magi.sampling.cuda_graphs import Replayed
from magi.sampling.frame import guidance_scale

KnownFrames = list[tuple[Tensor, Tensor] | None]
"""Keys and values of every temporal layer, (B * P, heads, frames, head width), or None before the first frame."""
Draw = Callable[[int, int, int], Tensor]
"""Noise of an iteration for a parity check: (steps, tokens a video, channels) -> (steps, M, C)."""
COMPILED_LIMIT = 5e-2
"""Of a pass, and of what a denoising step changes, in bf16 against the same compiled, which rounds elsewhere: a pass is
0.015 from float32 either way, and a step's change differs by 0.006."""


class MarStyleHead:
    """The diffusion head and its denoising loop, one whole evaluation a step."""

    def __init__(self, model: Magi, schedule: NoiseSchedule, config: SamplingConfig) -> None:
        self.head, self.config, self.schedule = model.head, config, schedule
        self.timestep_map = schedule.timesteps.numpy()
        self.arrays = {
            "x0_from_xt": (1 / schedule.alphas_bar).sqrt().numpy(),
            "x0_from_noise": (1 / schedule.alphas_bar - 1).sqrt().numpy(),
            "mean_from_x0": schedule.posterior_x0.numpy(),
            "mean_from_xt": schedule.posterior_xt.numpy(),
            "lowest": schedule.posterior_log_variance.numpy(),
            "highest": np.log(schedule.betas.numpy()),
        }
        blocks, width = len(model.head.blocks), model.head.input.out_features
        sizes = [3 * width] * blocks + [2 * width]
        self.weights = [weight.contiguous() for weight in model.head.modulation.weight.detach().split(sizes)]
        self.biases = [bias.contiguous() for bias in model.head.modulation.bias.detach().split(sizes)]

    def network(self, x: Tensor, timestep: Tensor, z: Tensor) -> Tensor:
        """The head as MAR lays it out: every block has its own SiLU and modulation layer."""
        head = self.head
        blocks: Any = head.blocks
        h = head.input(x.to(z.dtype))
        condition = head.timestep(timestep) + head.condition(z)
        for block, weight, bias in zip(blocks, self.weights, self.biases, strict=False):
            shift, scale, gate = F.linear(F.silu(condition), weight, bias).chunk(3, dim=-1)
            h = h + gate * block.mlp(block.norm(h) * (1 + scale) + shift)
        shift, scale = F.linear(F.silu(condition), self.weights[-1], self.biases[-1]).chunk(2, dim=-1)
        return head.output(head.final_norm(h) * (1 + scale) + shift)

    def prediction(self, x: Tensor, timestep: Tensor, z: Tensor, scale: float | Tensor | None) -> Tensor:
        """Of all rows; guidance doubles the batch, and both halves get the combined noise prediction."""
        if scale is None:
            return self.network(x, timestep, z)
        half = x[: len(x) // 2]
        out = self.network(torch.cat([half, half]), timestep, z)
        noise, rest = out.chunk(2, dim=-1)
        with_label, without = noise.chunk(2)
        combined = without + scale * (with_label - without)
        return torch.cat([torch.cat([combined, combined]), rest], dim=-1)

    def step(self, x: Tensor, index: int, z: Tensor, scale: float | None, noise: Tensor) -> Tensor:
        """One reverse step of all rows."""
        at = torch.tensor([index] * len(x), device=x.device)
        out = self.prediction(x, torch.tensor(self.timestep_map, device=x.device)[at], z, scale)
        return self.updated(x, out, {name: self._extract(name, at, x) for name in self.arrays}, at[:, None], noise)

    def updated(self, x: Tensor, out: Tensor, row: Mapping[str, Tensor], at: Tensor, noise: Tensor) -> Tensor:
        """The rows after step ``at``, of what the network predicts and the coefficients of the step."""
        predicted, interpolation = out.to(x.dtype).chunk(2, dim=-1)
        limit = self.config.x0_limit
        x0 = (row["x0_from_xt"] * x - row["x0_from_noise"] * predicted).clamp(-limit, limit)
        mean = row["mean_from_x0"] * x0 + row["mean_from_xt"] * x
        fraction = (interpolation + 1) / 2
        log_variance = fraction * row["highest"] + (1 - fraction) * row["lowest"]
        return mean + (at != 0) * torch.exp(0.5 * log_variance) * noise * self.config.temperature

    def _extract(self, name: str, at: Tensor, like: Tensor) -> Tensor:
        values = torch.from_numpy(self.arrays[name]).to(device=at.device)[at].to(like.dtype)
        return values[:, None] + torch.zeros_like(like)

    def sample(self, z: Tensor, scale: float | None, dtype: torch.dtype, noise_IMC: Tensor | None = None) -> Tensor:
        """Tokens of the rows z (under guidance: with the label, then without); noise is drawn a step unless given."""
        halves, channels = (1 if scale is None else 2), self.head.input.in_features

        def draw(row: int) -> Tensor:
            if noise_IMC is None:
                return torch.randn(len(z), channels, device=z.device, dtype=dtype)
            return torch.cat([noise_IMC[row].to(z.device, dtype)] * halves)

        x = draw(0)
        x = torch.cat([x[: len(z) // halves]] * halves)
        for index in range(len(self.schedule) - 1, -1, -1):
            x = self.step(x, index, z, scale, draw(index))
        return x[: len(z) // halves]


class CompiledHead(MarStyleHead):
    """The same step under ``torch.compile``: coefficients are tensors on the device, so that one graph holds a step."""

    def __init__(self, model: Magi, schedule: NoiseSchedule, config: SamplingConfig, mode: str) -> None:
        super().__init__(model, schedule, config)
        device = model.mask_token.device
        self.tensors = {name: torch.from_numpy(values).float().to(device) for name, values in self.arrays.items()}
        self.map = schedule.timesteps.to(device)
        self.indices = torch.arange(len(schedule), device=device)
        keep_in_place(*self.weights, *self.biases, *self.tensors.values(), self.map)
        self.compiled: Any = torch.compile(self._tensor_step, mode=mode)

    def step(self, x: Tensor, index: int, z: Tensor, scale: float | None, noise: Tensor) -> Tensor:
        """As the plain step, in one call."""
        guided = scale is not None
        guidance = torch.full((), 1.0 if scale is None else scale, device=x.device)
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(x, self.indices[index : index + 1], z, guidance, noise, guided).clone()

    def _tensor_step(self, x: Tensor, at: Tensor, z: Tensor, scale: Tensor, noise: Tensor, guided: bool) -> Tensor:
        out = self.prediction(x, self.map[at].expand(len(x)), z, scale if guided else None)
        return self.updated(x, out, {name: values[at] for name, values in self.tensors.items()}, at, noise)


def keep_in_place(*tensors: Tensor) -> None:
    """Tell the compiler that these stay where they are, so that its graphs read them there instead of copies."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)


def _block(
    layer: Any, x: Tensor, attend: Tensor, known: tuple[Tensor, Tensor] | None, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """One block of the transformer, with its keys and values, those ``known`` included, if ``keep``."""
    x = x + layer.spatial_attention(layer.spatial_norm(x))
    x = x + layer.spatial_mlp(layer.spatial_mlp_norm(x))
    attention = layer.temporal_attention
    qkv = attention.qkv(layer.temporal_norm(x))
    q, k, v = rearrange(qkv, "B S P (n h d) -> n (B P) h S d", n=3, h=attention.heads)
    if known is not None:
        k, v = torch.cat([known[0], k], dim=2), torch.cat([known[1], v], dim=2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
    x = x + attention.proj(rearrange(out, "(B P) h S d -> B S P (h d)", B=len(x)))
    return x + layer.temporal_mlp(layer.temporal_mlp_norm(x)), (k, v) if keep else None


def _check_same(what: str, found: Tensor, expected: Tensor) -> None:
    if not (difference := relative_error(found, expected)) <= COMPILED_LIMIT:
        raise RuntimeError(f"its {what} differs by {difference:.3g} from the plain one, {COMPILED_LIMIT:g} is allowed")


class MarStyleSampler:
    """Frames one after another, for B videos; with a ``compiler`` head and pass are under ``torch.compile``.

    All blocks are the same code, so one compilation serves all, in a fraction of the time that one of everything takes;
    on a GPU a pass is then one CUDA graph, so nothing between the blocks is left to the host. What that gives up is one
    fusion a block: its last sum with the next one's norm. The head's step is compiled in the mode "reduce-overhead". A
    ``compiler`` other than "inductor" (for tests) leaves the head as it is.
    ``time`` is the position in time of the frame that is predicted, if it is not the number of those in the cache.
    """

    def __init__(
        self, model: Magi, conditions: Conditions, config: SamplingConfig, batch: int, compiler: str | None = None
    ) -> None:
        self.model, self.conditions, self.config, self.batch = model, conditions, config, batch
        self.halves = conditions.batch // batch
        schedule = respace(cosine_schedule(model.config.diffusion_steps), config.steps)
        self.head = MarStyleHead(model, schedule, config)
        self.run_block: Callable[..., Any] = _block
        self.graph: Replayed | None = None
        if compiler is not None:
            # Whole or an error: beyond a limit of compilations PyTorch would silently go on without.
            self.run_block = torch.compile(_block, backend=compiler, dynamic=False, fullgraph=True)
            self.graph = Replayed(self._predicted) if model.mask_token.device.type == "cuda" else None
        if compiler == "inductor":
            self.head = CompiledHead(model, schedule, config, "reduce-overhead")
        self.restart()
        self.time: int | None = None

    def compiled(self, compiler: str) -> "MarStyleSampler":
        """The same compiled, with the same cache (a frame does not change it); RuntimeError if it computes another."""
        model = self.model
        other = MarStyleSampler(model, self.conditions, self.config, self.batch, compiler)
        other.cache, other.time = self.cache, self.time
        tokens_BNC = torch.randn(
            self.batch, model.tokens_per_frame, model.token_channels, device=model.mask_token.device
        )
        masked_BN = torch.ones(tokens_BNC.shape[:2], dtype=torch.bool, device=tokens_BNC.device)
        found, expected = (one.forward_pass(tokens_BNC, masked_BN)[:, :8] for one in (other, self))
        _check_same("pass", found, expected)
        # One token a video at a step of the middle, where what is predicted counts most beside x itself.
        z, x = expected[:, 0], torch.cat([tokens_BNC[:, 0]] * self.halves)
        scale = self.config.guidance if self.halves == 2 else None
        index, noise = len(self.head.schedule) // 2, torch.randn_like(x)
        _check_same("step", *(one.head.step(x, index, z, scale, noise) - x for one in (other, self)))
        return other

    def restart(self) -> None:
        """Forget all frames."""
        self.cache: KnownFrames = [None] * self.model.config.blocks

    @property
    def length(self) -> int:
        """Frames in the cache."""
        return 0 if self.cache[0] is None else self.cache[0][0].shape[2]

    def observe(self, tokens_BTNC: Tensor) -> None:
        """Append finished frames to the cache."""
        frames, known = tokens_BTNC.shape[1], self.length
        masked_BTN = torch.zeros(tokens_BTNC.shape[:3], dtype=torch.bool, device=tokens_BTNC.device)
        complete = self.model.config.teacher_forcing == "complete"
        x_BTPD = self._embedded(tokens_BTNC, masked_BTN, complete, known)
        attend = torch.ones(frames, known + frames, dtype=torch.bool, device=tokens_BTNC.device).tril(diagonal=known)
        _, self.cache = self._blocks(x_BTPD, attend, True)

    def forward_pass(self, tokens_BNC: Tensor, masked_BN: Tensor) -> Tensor:
        """z_BND of all tokens of the frame being generated (under guidance: with the label, then without)."""
        tokens_BTNC = tokens_BNC.to(self.model.mask_token.dtype)[:, None]
        x_BTPD = self._embedded(tokens_BTNC, masked_BN[:, None], False, self.length if self.time is None else self.time)
        attend = torch.ones(1, self.length + 1, dtype=torch.bool, device=tokens_BNC.device)
        if self.graph is None:
            x_BTPD = self._predicted(x_BTPD, attend)
        else:  # it reads the cache where it lies
            x_BTPD = cast(Tensor, self.graph(x_BTPD, attend, key=id(self.cache)))
        return self.model._condition(x_BTPD).squeeze(1)

    def _embedded(self, tokens_BTNC: Tensor, masked_BTN: Tensor, observation: bool, time: int) -> Tensor:
        """Frames from ``time`` on as the transformer takes them, once for each half of guidance."""
        frames, device = tokens_BTNC.shape[1], tokens_BTNC.device
        tokens_BTNC, masked_BTN = (torch.cat([part] * self.halves) for part in (tokens_BTNC, masked_BTN))
        is_observation_T = torch.full((frames,), observation, device=device)
        time_T = torch.arange(time, time + frames, device=device)
        return self.model._embed(tokens_BTNC, masked_BTN, is_observation_T, time_T, self.conditions)

    def _predicted(self, x_BTPD: Tensor, attend: Tensor) -> Tensor:
        return self._blocks(x_BTPD, attend, False)[0]

    def _blocks(self, x: Tensor, attend: Tensor, keep: bool) -> tuple[Tensor, KnownFrames]:
        grown: KnownFrames = []
        for layer, known in zip(self.model.transformer.blocks, self.cache, strict=True):
            x, pair = self.run_block(layer, x, attend, known, keep)
            if keep:
                grown.append(pair)
        return x, grown

    def masks_before(self, order_BN: Tensor, iterations: Sequence[int]) -> dict[int, Tensor]:
        """masked_BN at the beginning of each of these iterations of a frame in this order."""
        order_BN = order_BN.to(self.model.mask_token.device)
        masked_BN, found = torch.ones_like(order_BN, dtype=torch.bool), {}
        for iteration in range(max(iterations) + 1):
            found[iteration] = masked_BN
            masked_BN = self._next_mask(order_BN, masked_BN, iteration)
        return {iteration: found[iteration] for iteration in iterations}

    def frame(
        self, order_BN: Tensor | None = None, draw: Draw | None = None, part: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """tokens_BNC of the next frame; order and noise are random unless given.

        Of a ``part`` only its iterations are made, each from the mask given for it; other tokens stay zero.
        """
        model, config = self.model, self.config
        device, dtype = model.mask_token.device, torch.promote_types(model.mask_token.dtype, torch.float32)
        N, C = model.tokens_per_frame, model.token_channels
        if order_BN is None:
            order_BN = torch.stack([torch.from_numpy(np.random.permutation(N)) for _ in range(self.batch)])
        order_BN = order_BN.to(device)
        tokens_BNC = torch.zeros(self.batch, N, C, device=device, dtype=dtype)
        masked_BN = torch.ones(self.batch, N, device=device, dtype=torch.bool)
        for iteration in range(config.iterations) if part is None else part:
            masked_BN = masked_BN if part is None else part[iteration]
            z_BND = self.forward_pass(tokens_BNC, masked_BN)
            next_BN = self._next_mask(order_BN, masked_BN, iteration)
            picked_BN = masked_BN & ~next_BN
            z = z_BND[torch.cat([picked_BN] * self.halves)]
            scale = None
            if self.halves == 2:
                predicted = 1 - float(next_BN[0].sum()) / N
                scale = guidance_scale(config, predicted)
            count = int(picked_BN[0].sum())
            noise_IMC = None if draw is None else draw(config.steps, count, C)
            tokens_BNC[picked_BN] = self.head.sample(z, scale, dtype, noise_IMC)
            masked_BN = next_BN
        return tokens_BNC

    def _next_mask(self, order_BN: Tensor, masked_BN: Tensor, iteration: int) -> Tensor:
        """The mask after an iteration of the cosine schedule: the tokens that come last in the order stay masked."""
        N, last = masked_BN.shape[1], self.config.iterations - 1
        if iteration == last:
            return torch.zeros_like(masked_BN)
        share = math.cos(math.pi / 2 * (iteration + 1) / self.config.iterations)
        wanted = torch.tensor([math.floor(N * share)], device=masked_BN.device)
        still = torch.maximum(torch.ones_like(wanted), torch.minimum(masked_BN.sum(dim=-1) - 1, wanted))
        next_BN = torch.zeros_like(masked_BN)
        return next_BN.scatter(1, order_BN[:, N - int(still[0]) :], True)
