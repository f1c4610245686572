"""Before anything else is imported: without a GPU, kernels run in Triton's interpreter.

Triton reads the variable when it is imported itself, and PyTorch may do that in any test.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
