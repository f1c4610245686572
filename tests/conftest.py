"""Before anything else is imported: without a GPU, kernels run in Triton's interpreter; and what is collected stays.

Triton reads the variable when it is imported itself, and PyTorch may do that in any test.
"""

import gc
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# All tests import half a million objects that live to the end. Python would look through them again and again for
# cycles, a third of a second each time, while it imports them and then in the tests.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on cycles are looked for among newer objects."""
    gc.freeze()
    gc.enable()
