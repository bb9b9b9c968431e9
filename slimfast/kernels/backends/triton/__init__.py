"""Triton kernels for NVIDIA GPUs; Triton is imported when the first of them runs.

With ``TRITON_INTERPRET=1``, set before Triton is imported, the same kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimfast.kernels.backends.contract import Prepared, PreparedOps, absent, member_by_member, why_absent
from slimfast.kernels.backends.triton import moment_launches, solve_launches
from slimfast.kernels.backends.triton.covariance_launches import prepare_covariance
from slimfast.kernels.backends.triton.where import interpreted, on_device
from slimfast.kernels.convolutions import Convolution
from slimfast.kernels.dtypes import ELEMENT_BYTES
from slimfast.kernels.results import CrossMoments, Moments

OLDEST_TRITON = (3, 4)
# bfloat16 and TF32 tensor cores begin here.
OLDEST_CAPABILITY = (8, 0)
_KERNELS = ("covariance", "moments", "cross_covariance", "patch_moments", "cholesky_solve", "gather")


def why_not(op: str, inputs: Sequence[Tensor]) -> list[str]:
    """List every reason why Triton cannot run ``op`` on these tensors."""
    if op not in _KERNELS:
        return [why_absent("Triton", op)]
    missing = _why_no_triton()
    reasons = [missing] if missing else []
    if torch.version.hip:
        reasons.append("the Triton kernels are written for NVIDIA GPUs, and this is a ROCm build of torch")
    wanted = "cpu" if interpreted() else "cuda"
    elsewhere = sorted({t.device.type for t in inputs} - {wanted})
    if elsewhere:
        where = f"{wanted} (TRITON_INTERPRET=1)" if interpreted() else wanted
        reasons.append(f"tensors are on {', '.join(elsewhere)}, expected {where}")
    for device in sorted({t.device.index or 0 for t in inputs if t.device.type == "cuda"}):
        found = torch.cuda.get_device_capability(device)
        if found < OLDEST_CAPABILITY:
            reasons.append(
                f"cuda:{device} has compute capability {found[0]}.{found[1]}, expected 8.0 or newer"
            )
    sizes = sorted({t.element_size() for t in inputs} - set(ELEMENT_BYTES))
    if sizes:
        reasons.append(f"elements of {', '.join(map(str, sizes))} bytes, expected 1, 2, 4 or 8")
    return reasons


@functools.cache
def _why_no_triton() -> str | None:
    try:
        found = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"triton does not load: {error}"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {found} is older than {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]}"
    return None


def covariance(xs: list[Tensor], rows: list[bool], dtypes: list[torch.dtype]) -> tuple[list[Tensor], Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_covariance`; ``rows`` chooses sides, ``dtypes`` results."""
    call = prepare_covariance(xs, rows, dtypes)
    call.launch()
    return call.results


def moments(
    xs: list[Tensor], masks: list[Tensor | None], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_moments`: xs are (variables, positions ...)."""
    with on_device(xs[0].device):
        moment_launches.add_moments(xs, masks, into, dtypes)


def cross_covariance(
    xs: list[Tensor],
    ys: list[Tensor],
    masks: list[Tensor | None],
    into: list[CrossMoments],
    dtypes: list[torch.dtype],
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_cross_covariance`."""
    with on_device(xs[0].device):
        moment_launches.add_cross_covariance(xs, ys, masks, into, dtypes)


def patch_moments(
    xs: list[Tensor], convolutions: list[Convolution], into: list[Moments], dtypes: list[torch.dtype]
) -> None:
    """See :func:`slimfast.kernels.moments.grouped_patch_moments`: patches are never stored."""
    with on_device(xs[0].device):
        moment_launches.add_patch_moments(xs, convolutions, into, dtypes)


def cholesky_solve(
    mats: list[Tensor], rhs: list[Tensor], dampings: list[list[float]]
) -> list[tuple[Tensor, Tensor]]:
    """See :func:`slimfast.kernels.cholesky_solve.grouped_cholesky_solve`; waits for the device once."""
    with on_device(mats[0].device):
        return solve_launches.solve_systems(mats, rhs, dampings)


def joint_covariance(
    layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype]
) -> tuple[list[Tensor], Tensor]:
    """Compute the same for layers of several members, one turn of members after another."""
    return member_by_member(covariance, layers, rows, dtypes)


# Tridiagonalisation, picks and factors are chains of small steps with barriers: not for Triton.
eigvalsh = absent("triton", "Triton", "eigvalsh")
eigvalsh_stacked = absent("triton", "Triton", "eigvalsh")
pivoted_cholesky = absent("triton", "Triton", "pivoted_cholesky")


def gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> list[Tensor]:
    """See :func:`slimfast.kernels.ops.grouped_gather`."""
    call = prepare_gather(tensors, keeps)
    call.launch()
    return call.results


def prepare_gather(tensors: list[Tensor], keeps: list[Mapping[int, Tensor]]) -> Prepared[list[Tensor]]:
    """Make a call of :func:`gather` ready to be launched; the first launch compiles, so it is no
    capture's.
    """
    from slimfast.kernels.backends.triton.gather_kernels import prepare_gather as prepare

    device = tensors[0].device
    with on_device(device):
        thin, start = prepare(tensors, keeps)

    def launch() -> None:
        with on_device(device):
            start()

    return Prepared(thin, launch)


PREPARE: PreparedOps = {"covariance": prepare_covariance, "gather": prepare_gather}
