"""The element types that the kernels read and write, and the codes by which the compiled ones know them."""

from __future__ import annotations

import torch

# As csrc/common counts them.
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# What a covariance is taken of.
FLOATING = tuple(CODES)
# What it is returned in, and what eigenvalues and picks are found in.
COMPUTED = (torch.float32, torch.float64)
# Elements of these sizes are gathered, whatever they are.
ELEMENT_BYTES = (1, 2, 4, 8)
