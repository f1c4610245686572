"""Where programs of a grid leave rows for each other: two places in turn, and the proof that two are enough.

``head_kernels`` runs steps of L blocks. In a step every program publishes its columns of h to the place of block 0;
then, for each block b: barrier, all read place b and write a hidden buffer, barrier, all read the hidden buffer and
publish to the place of block b + 1; at last: barrier, all read place L, and the next step begins.

Between two barriers a fast program may be ahead of a slow one, so what is written there must not be what is read there.
Within a block that holds, because neighbours alternate. After the last barrier of a step slow programs read place L
while fast ones already publish for the next step, so a step must begin where the last one did not end: place L of a
step and place 0 of the next are neighbours too, which counting on through all steps gives. It knows no tensors, and no
Triton: the kernel compiles this function, and a test without a GPU runs it.
"""


def exchange_place(step: int, block: int, blocks: int) -> int:
    """Which of two places holds the rows that block ``block`` (0..blocks, the last is the output) of a step reads."""
    return (step * (blocks + 1) + block) % 2
