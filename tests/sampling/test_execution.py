"""Fast paths are the plain path: folded head, padding, number formats, fewer steps; CUDA graphs bit for bit."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi.config import SamplingConfig
from magi.model.conditioning import Conditions
from magi.model.diffusion_head import DiffusionHead, FoldedHead
from magi.model.objectives.ddpm import cosine_schedule, respace, reverse_table
from magi.sampling import execution
from magi.sampling.denoise import Denoiser, denoise_tokens, draw_noise, padded_rows
from magi.sampling.execution import Execution, choose_execution, in_format
from magi.sampling.frame import generate_frame, plan_frame
from magi.sampling.history import History
from tests.sampling.test_generate import FAST, normal, sample, seeded, tiny_model, told


def random_head() -> DiffusionHead:
    generator = torch.Generator().manual_seed(5)
    head = DiffusionHead(channels=2, condition_width=16, width=16, blocks=2).double().requires_grad_(False)
    for parameter in head.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head


def test_folding_the_head_is_exact() -> None:
    head = random_head()
    folded = FoldedHead(head)
    x_MC, z_GMD, timestep_I11 = normal(5, 2), normal(2, 5, 16), torch.tensor([900, 3])[:, None, None]
    expected = head(x_MC, timestep_I11, z_GMD[None])
    modulations = folded.modulations(folded.embed_time(timestep_I11), z_GMD[None])
    torch.testing.assert_close(folded.denoise(x_MC, modulations), expected)
    assert folded.modulation_width == head.modulation_width


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_a_padded_denoiser_is_the_plain_loop(rows: int) -> None:
    head, table = random_head(), reverse_table(respace(cosine_schedule(50), 6))
    z_GMD, noise_IMC, scale = normal(2, rows, 16), normal(6, rows, 2), torch.tensor(2.5, dtype=torch.float64)
    expected = denoise_tokens(head, z_GMD, noise_IMC, table, scale, 0.7)
    for padded in (False, True):
        denoiser = Denoiser(head, 0.7)
        denoiser.padded = padded
        torch.testing.assert_close(denoiser(z_GMD, noise_IMC, table, scale), expected)


def test_timesteps_are_embedded_once_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once an iteration: they depend on no token. Another table has its own."""
    denoiser, asked = Denoiser(random_head(), 1.0), []
    plain = denoiser.head.embed_time
    monkeypatch.setattr(denoiser.head, "embed_time", lambda timestep: asked.append(len(timestep)) or plain(timestep))
    few, many = (reverse_table(respace(cosine_schedule(50), steps)) for steps in (4, 6))
    scale = torch.tensor(2.5, dtype=torch.float64)
    for table in (few, many, few, many):
        noise_IMC = normal(len(table), 3, 2)
        expected = denoise_tokens(random_head(), normal(2, 3, 16), noise_IMC, table, scale, 1.0)
        torch.testing.assert_close(denoiser(normal(2, 3, 16), noise_IMC, table, scale), expected)
    assert asked == [4, 6]


def test_few_numbers_of_rows_are_ever_recorded() -> None:
    sizes = {padded_rows(rows) for rows in range(1, 513)}
    assert sizes == {8, 16, 32, 64, 128, 256, 384, 512}
    assert all(padded_rows(rows) >= rows for rows in range(1, 2000))


def test_padding_the_picked_tokens_changes_nothing() -> None:
    model = tiny_model()
    past = History(model, told(2), seeded(1, 2), 3, SamplingConfig())
    masked_BN = torch.ones(2, 12, dtype=torch.bool)
    picked_Bm = torch.tensor([[3, 4, 5], [0, 11, 7]])
    with torch.inference_mode():
        plain = past.predict(normal(2, 12, 2), masked_BN, picked_Bm)
        past.padded = True
        torch.testing.assert_close(past.predict(normal(2, 12, 2), masked_BN, picked_Bm), plain)


F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def executions(monkeypatch: pytest.MonkeyPatch, model: Any, bf16: bool) -> dict[str, Execution]:
    """By precision, on a processor with or without instructions for bf16."""
    monkeypatch.setattr(execution, "computes_in_bf16", lambda device: bf16)
    return {precision: choose_execution(model, precision) for precision in ("auto", "bf16", "fp32")}


def test_a_cpu_computes_in_bf16_what_is_faster_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().float()
    exact, rounded = Execution(F32, F32, F32), Execution(F32, BF16, BF16)
    narrow_head = Execution(F32, BF16, F32)
    assert executions(monkeypatch, model, True) == {"auto": narrow_head, "bf16": rounded, "fp32": exact}
    assert executions(monkeypatch, model, False) == {"auto": exact, "bf16": rounded, "fp32": exact}
    monkeypatch.setattr(execution, "LEAST_HEAD_WIDTH", model.config.head_width)
    assert executions(monkeypatch, model, True)["auto"] == rounded
    assert choose_execution(model.double(), "auto") == Execution.plain(model) == Execution(F64, F64, F64)
    assert choose_execution(model.bfloat16(), "fp32") == exact


class OnGpu:
    """A model whose weights say that they are on a GPU, which is all that the choice looks at."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.config = tiny_model().config
        self.mask_token = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_gpu_computes_in_bf16_with_graphs_and_kernels(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(execution, "find_spec", lambda name: name)
    fast, exact = Execution(BF16, BF16, BF16, True, True), Execution(F32, F32, F32, True, False)
    assert executions(monkeypatch, OnGpu(dtype), True) == {"auto": fast, "bf16": fast, "fp32": exact}
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    assert choose_execution(OnGpu(dtype), "auto") == replace(fast, kernels=False)  # type: ignore[arg-type]


def test_a_copy_in_another_format_leaves_the_model_alone() -> None:
    model = tiny_model(dropout=0.5).float().train()
    with torch.inference_mode():
        copied = in_format(model, BF16)
    assert in_format(model, F32) is model and model.training and model.mask_token.dtype == F32
    assert copied.mask_token.dtype == BF16 and not any(module.training for module in copied.modules())


# On a GPU


def _frame(model: Any, path: Execution, padded: bool, config: SamplingConfig) -> Tensor:
    conditions = replace(told(2), noise_level_B=torch.ones(2, dtype=torch.long))
    conditions = Conditions.cat([conditions, conditions.null(model.config)]).to(torch.device("cuda"))
    with torch.inference_mode():
        past = History(model, conditions, seeded(1, 2), 3, config, path)
        denoiser = Denoiser(model.head, config.temperature, path.head_products, path.graphs)
        past.padded = denoiser.padded = padded
        plan = plan_frame(model, config)
        for _ in range(2):  # the second frame replays what the first one recorded
            tokens_BNC = generate_frame(model, past, seeded(5, 6), plan, denoiser).clone()
        past.observe(tokens_BNC[:, None])
        return generate_frame(model, past, seeded(7, 8), plan, denoiser).clone()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_are_the_same_operations_bit_for_bit(dtype: torch.dtype) -> None:
    model = tiny_model().to("cuda", dtype)
    config = FAST.model_copy(update={"guidance": 2.0})
    path = replace(
        choose_execution(model, "auto"), weights=dtype, pass_products=dtype, head_products=dtype, kernels=False
    )
    replayed = _frame(model, path, True, config)
    assert torch.equal(replayed, _frame(model, replace(path, graphs=False), True, config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_cpus_video_in_float32() -> None:
    model = tiny_model().float()
    expected = sample(model)
    made = sample(model.to("cuda"), FAST.changed(precision="fp32"))
    torch.testing.assert_close(made.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_noise_rows_are_as_many_as_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from magi.sampling import frame

    drawn: list[int] = []

    def spy(generators: Any, steps: int, *rest: Any) -> Tensor:
        drawn.append(steps)
        return draw_noise(generators, steps, *rest)

    monkeypatch.setattr(frame, "draw_noise", spy)
    sample(tiny_model(), SamplingConfig(iterations=3, steps=6), frames=1)
    assert drawn == [6, 6, 6]


def test_a_frame_with_none_before_it_has_steps_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from magi.sampling import frame

    tables: list[list[int]] = []
    plain = frame.generate_frame

    def spy(model: Any, history: Any, generators: Any, plan: Any, *rest: Any) -> Tensor:
        tables.append(plan.table.timesteps.tolist())
        return plain(model, history, generators, plan, *rest)

    monkeypatch.setattr("magi.sampling.prepared.generate_frame", spy)
    config = SamplingConfig(iterations=2, steps=2, first_timestep=40, last_timestep=10, first_frame_steps=3)
    model = tiny_model()
    made = sample(model, config, frames=3)
    assert tables == [[0, 24, 49], [10, 40], [10, 40]]
    first = sample(model, SamplingConfig(iterations=2, steps=3), frames=1)
    assert torch.equal(made[:, 0], first[:, 0])
    tables.clear()
    sample(model, config, frames=3, context_BTCHW=normal(2, 1, 2, 3, 4))
    assert tables == [[10, 40]] * 2, "a context is before it"
    with pytest.raises(ValueError, match=r"sampling.steps: expected 1..50, got 51"):
        sample(model, config.changed(first_frame_steps=51), frames=2)
