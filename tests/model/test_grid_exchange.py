"""No program of the grid overwrites rows that a slower one has yet to read, as far ahead as barriers let it run."""

from collections.abc import Callable, Iterator

import pytest

from magi.model.grid_exchange import exchange_place

Place = Callable[[int, int, int], int]
STEPS = 5


class Grid:
    """Two programs that run one after the other between barriers; ``place`` is the rule under test."""

    def __init__(self, place: Place, blocks: int) -> None:
        self.place, self.blocks = place, blocks
        self.rows: dict[tuple[int, int], tuple[int, int]] = {}
        self.hidden: dict[int, tuple[int, int]] = {}
        self.wrong: list[tuple[int, int]] = []

    def program(self, mine: int) -> Iterator[None]:
        """What a program of ``head_kernels`` publishes and reads, in its order; a yield is a barrier."""
        for step in range(STEPS):
            self.rows[self.place(step, 0, self.blocks), mine] = (step, 0)
            for block in range(self.blocks):
                yield
                self.read(step, block)
                self.hidden[mine] = (step, block)
                yield
                if any(self.hidden[other] != (step, block) for other in (0, 1)):
                    self.wrong.append((step, block))
                self.rows[self.place(step, block + 1, self.blocks), mine] = (step, block + 1)
            yield
            self.read(step, self.blocks)

    def read(self, step: int, block: int) -> None:
        """Everybody's rows, which must be those that were published for this block of this step."""
        place = self.place(step, block, self.blocks)
        if any(self.rows[place, other] != (step, block) for other in (0, 1)):
            self.wrong.append((step, block))

    def run(self, fast: Callable[[int], int]) -> list[tuple[int, int]]:
        """(step, block) of every wrong read, when program ``fast(n)`` is the first between barriers n and n + 1."""
        programs = [self.program(0), self.program(1)]
        for n in range(STEPS * (2 * self.blocks + 1) + 1):
            for mine in (fast(n), 1 - fast(n)):
                next(programs[mine], None)
        assert all(next(program, "ended") == "ended" for program in programs)
        return self.wrong


SCHEDULES: tuple[Callable[[int], int], ...] = (lambda n: 0, lambda n: 1, lambda n: n % 2, lambda n: n // 2 % 2)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 6])
def test_every_program_reads_what_was_published_for_it(blocks: int) -> None:
    for fast in SCHEDULES:
        assert Grid(exchange_place, blocks).run(fast) == []


@pytest.mark.parametrize(("blocks", "safe"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_step_that_always_begins_at_the_same_place_is_unsafe_for_even_numbers_of_blocks(
    blocks: int, safe: bool
) -> None:
    """So the schedules above do find a race where there is one: the last product of a step, overwritten by the next."""
    wrong = Grid(lambda step, block, blocks: block % 2, blocks).run(SCHEDULES[0])
    assert wrong == [] if safe else {block for _, block in wrong} == {blocks}
