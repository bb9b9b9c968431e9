"""The basis inside a head whose first dims are the best approximation of the product of its factors."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the mean square of a factor's dims: so much is added to each, so that the basis can be turned back where
# a factor has fewer independent dims than the head. It moves no singular value that float32 could show.
_FLOOR = 1e-8


def balanced_basis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for T such that ``A T`` and ``B T^-T`` have the singular vectors of ``A B^T`` as columns.

    Of ``A`` (L, E) and ``B`` (D, E) only ``A^T A`` and ``B^T B`` are needed: with their symmetric roots Ra
    and Rb and the singular value decomposition ``Ra Rb = U S V^T`` it is ``T = Rb V S^-1/2``. The first r
    dims are then the best approximation of rank r of ``A B^T`` (Eckart and Young, 1936), and both factors'
    dims have the same norms, S^1/2.

    Args:
        first: ``A^T A`` (E, E), float64.
        second: ``B^T B`` (E, E), float64.

    Returns:
        T and T^-T (E, E), and the singular values (E,), largest first.
    """
    roots = [_root(gram) for gram in (first, second)]
    _, values, right = torch.linalg.svd(roots[0] @ roots[1])
    basis = roots[1] @ right.mT * values.rsqrt()
    return basis, torch.linalg.inv(basis).mT, values


def _root(gram: Tensor) -> Tensor:
    size = float(gram.diagonal().mean()) or 1.0
    values, vectors = torch.linalg.eigh(gram / size)
    root: Tensor = (vectors * (values.clamp_min(0.0) + _FLOOR).sqrt()) @ vectors.mT * size**0.5
    return root
