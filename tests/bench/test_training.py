"""The training cases work on any device: contenders compute the same, and their figures are finite."""

import math

import pytest
import torch

from magi.bench.attention import CASES as ATTENTION
from magi.bench.attention import packed_flex, padded_flex
from magi.bench.case import OURS, Case, Setting
from magi.bench.training import CASES as TRAINING
from magi.bench.training_setup import (
    build_model,
    draw_clips,
    largest_that_fits,
    naive_loss,
    our_loss,
    setup,
    split_clips,
)
from magi.model.slot_attention import dense_slot_attention
from magi.model.teacher_forcing import SlotPattern

SMOKE = Setting(torch.device("cpu"), smoke=True)


@pytest.mark.parametrize("case", [*ATTENTION, *TRAINING], ids=lambda case: case.name)
def test_a_case_has_parity_and_figures(case: Case) -> None:
    trial = case.prepare(SMOKE)
    checked = trial.check()
    parities = checked if isinstance(checked, tuple) else (checked,)
    assert parities and [parity for parity in parities if not parity.holds] == []
    assert trial.contenders[0].name == OURS
    for contender in trial.contenders:
        contender.run()
    metrics = dict(trial.metrics({contender.name: 1.0 for contender in trial.contenders}))
    metrics |= {f"x {contender.name}": 1.0 for contender in trial.contenders}
    assert all(math.isfinite(value) for name, value in metrics.items() if name != "peak GB")
    # The tiny run shares a clip among 2 masks, not 4.
    named = {goal.metric.replace("4 masks", "2 masks") for goal in case.goals}
    assert named <= metrics.keys()
    trial.close()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_contenders_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline with another mask would be no baseline; here without compilation, which needs a GPU."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    pattern, heads = SlotPattern(3, 4, 1), 2
    projected = torch.randn(2, pattern.slots, 3, 3 * heads * 16, generator=torch.Generator().manual_seed(0))
    expected = dense_slot_attention(None, projected, pattern, heads)
    for path in (packed_flex(pattern, 3, SMOKE.device), padded_flex(pattern, SMOKE.device)):
        torch.testing.assert_close(path(None, projected, pattern, heads), expected, rtol=1e-5, atol=1e-5)


def test_parts_of_a_batch_have_its_loss() -> None:
    """Contenders that take the clips in more passes do the same work."""
    config, latent = setup(smoke=True)
    model = build_model(config, latent, SMOKE.device).eval()
    clips = draw_clips(config, model, 3, SMOKE.device)
    for loss in (our_loss(model, config, SMOKE.device), naive_loss(model, config, SMOKE.device)):
        whole = loss(clips.tokens_BTNC, clips.batch, clips.masked)
        parts = [loss(part.tokens_BTNC, part.batch, clips.masked) for part in split_clips(clips, 2)]
        torch.testing.assert_close(sum(parts), whole)


def test_smaller_passes_where_memory_is_short() -> None:
    tried: list[int] = []

    def make(size: int):  # type: ignore[no-untyped-def]
        def work() -> None:
            tried.append(size)
            if size > 2:
                raise torch.OutOfMemoryError("no room")

        return work

    size, _ = largest_that_fits(make, (8, 4, 2, 1))
    assert size == 2 and tried == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        largest_that_fits(make, (8, 4))
