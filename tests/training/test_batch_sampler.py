import pytest

from magi.training.batch_sampler import StepBatchSampler, micro_batches, step_samples


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batch", [0, 1, 2])
def test_every_sample_exactly_once_in_its_step(world: int, micro_batch: int) -> None:
    """Over any number of processes, also where the batch does not divide: no sample twice, none missing."""
    orders = [StepBatchSampler(0, 4, 5, micro_batch, rank, world) for rank in range(world)]
    for step in range(4):
        seen = [sample for order in orders for part in order.of_step(step) for sample in part]
        assert sorted(seen) == list(range(5 * step, 5 * step + 5))


def test_order_does_not_depend_on_micro_batches() -> None:
    whole, parts = StepBatchSampler(0, 3, 6, 0), StepBatchSampler(0, 3, 6, 4)
    assert [sample for part in parts for sample in part] == [sample for part in whole for sample in part]
    assert [part[0] for part in whole] == [0, 6, 12]
    assert [len(part) for part in parts] == [4, 2] * 3 and len(parts) == 6


def test_resumed_order_is_the_rest_of_the_order() -> None:
    everything = list(StepBatchSampler(0, 9, 4, 3, rank=1, world=2))
    first, rest = list(StepBatchSampler(0, 5, 4, 3, 1, 2)), list(StepBatchSampler(5, 9, 4, 3, 1, 2))
    assert first + rest == everything and len(rest) == len(StepBatchSampler(5, 9, 4, 3, 1, 2))


def test_sample_numbers() -> None:
    assert list(step_samples(2, 5)) == [10, 11, 12, 13, 14]
    assert list(step_samples(2, 5, rank=1, world=2)) == [11, 13]
    assert micro_batches([1, 2, 3], 2) == [[1, 2], [3]]


def test_fewer_clips_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.batch 2 .* processes 3"):
        StepBatchSampler(0, 1, 2, 0, rank=0, world=3)
