"""Which backend runs an op: the first with no reason against it, or exactly the one that was named.

``SLIMFAST_BACKEND`` names one for the whole process; an argument names one for a call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from slimfast.errors import ArgumentError, BackendUnavailable, did_you_mean
from slimfast.kernels.backends import cpu, cuda, reference, triton
from slimfast.kernels.backends.contract import Backend

_MODULES: dict[str, Backend] = {"cpu": cpu, "cuda": cuda, "triton": triton, "reference": reference}
BACKENDS = tuple(_MODULES)

# Where two backends can run an op on the same device, the faster comes first.
_PREFERENCE = {
    "covariance": ("cpu", "triton", "cuda", "reference"),
    "eigvalsh": ("cpu", "cuda", "reference"),
    "pivoted_cholesky": ("cpu", "cuda", "reference"),
    "gather": ("cpu", "cuda", "triton", "reference"),
    "moments": ("cpu", "triton", "cuda", "reference"),
    "cross_covariance": ("cpu", "triton", "cuda", "reference"),
    "patch_moments": ("cpu", "cuda", "triton", "reference"),
    "cholesky_solve": ("cpu", "cuda", "triton", "reference"),
}
# In float64 Triton's compiler has fewer registers than its products need.
_PREFERENCE_FLOAT64 = dict.fromkeys(
    ("covariance", "moments", "cross_covariance"), ("cpu", "cuda", "triton", "reference")
)
OPS = tuple(_PREFERENCE)


def backend_module(name: str) -> Backend:
    """Find the module of a backend; ``ValueError`` for a name that is none of :data:`BACKENDS`."""
    if name not in BACKENDS:
        hint = did_you_mean(name, ("auto", *BACKENDS))
        raise ArgumentError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {name!r}{hint}")
    return _MODULES[name]


def why_not(op: str, inputs: Sequence[Tensor], backend: str) -> list[str]:
    """List every reason why ``backend`` cannot run ``op`` on these tensors; empty when it can."""
    if op not in OPS:
        raise ArgumentError(f"op: expected one of {', '.join(OPS)}, got {op!r}{did_you_mean(op, OPS)}")
    return backend_module(backend).why_not(op, inputs)


def select_backend(
    op: str, inputs: Sequence[Tensor], backend: str = "auto", *, in_float64: bool = False
) -> Backend:
    """Choose the module that runs ``op`` on ``inputs``; ``in_float64``: results are wanted in it, of any
    inputs.

    ``auto`` reads ``SLIMFAST_BACKEND``, and without it takes the first backend with no reason against it. A
    named backend that cannot run raises :class:`BackendUnavailable` with all of its reasons; nothing falls
    back silently.
    """
    if backend == "auto":
        backend = os.environ.get("SLIMFAST_BACKEND", "") or "auto"
    if backend != "auto":
        reasons = why_not(op, inputs, backend)
        if reasons:
            raise BackendUnavailable(f"{op}: backend {backend!r} cannot run: {'; '.join(reasons)}")
        return backend_module(backend)
    against = {}
    preference = _PREFERENCE_FLOAT64.get(op, _PREFERENCE[op]) if in_float64 else _PREFERENCE[op]
    for name in preference:
        against[name] = why_not(op, inputs, name)
        if not against[name]:
            return backend_module(name)
    told = " | ".join(f"{name}: {'; '.join(reasons)}" for name, reasons in against.items())
    raise BackendUnavailable(f"{op}: no backend can run: {told}")
