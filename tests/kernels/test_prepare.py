"""Calls made ready: launched again they read inputs anew and allocate nothing; the rest is refused."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest
import torch
from support import kernels_cases as cases
from support.ready_cases import ready, results, semidefinite
from torch import Tensor

from slimfast.errors import BackendUnavailable
from slimfast.kernels import (
    grouped_covariance,
    grouped_pivoted_cholesky,
    prepare_covariance,
    prepare_eigvalsh,
    prepare_gather,
    prepare_pivoted_cholesky,
)

OPS = ("covariance", "eigvalsh", "pivoted_cholesky", "gather")


@pytest.mark.parametrize("op", OPS)
def test_every_launch_reads_the_inputs_anew(device: str, op: str) -> None:
    inputs, call, again = ready(op, device)
    # A negative one would leave nothing to pick.
    for factor in (1.0, 2.0, 0.5) if op == "pivoted_cholesky" else (1.0, -2.0, 0.5):
        for x in inputs:
            x.mul_(factor)
        call.launch()
        expected = again()
        assert all(map(torch.equal, results(call), expected)), factor
    if op == "covariance":
        assert torch.equal(call.results.traces.cpu(), grouped_covariance(inputs, backend="cuda").traces)


@pytest.mark.parametrize("op", OPS)
def test_a_launch_allocates_nothing_and_its_memory_is_kept(
    emulator: ModuleType, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, call, again = ready(op, "cpu")
    expected = again()
    gc.collect()
    # What the call had let go of would be written over by these.
    others = [torch.full((n,), 7, dtype=torch.int64) for n in range(1, 4000, 3)]
    assert len(others) > 1

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("a launch allocates or copies")

    with monkeypatch.context() as patch:
        for name in ("empty", "zeros", "tensor", "cat"):
            patch.setattr(torch, name, refuse)
        patch.setattr(Tensor, "to", refuse)
        patch.setattr(Tensor, "contiguous", refuse)
        call.launch()
    assert all(map(torch.equal, results(call), expected))
    assert inputs


def test_picks_are_padded_to_the_ranks_asked_for(device: str) -> None:
    mats, ranks = semidefinite(device)
    call = prepare_pivoted_cholesky(mats, ranks, backend="cuda")
    call.launch()
    found = call.results
    # What an earlier launch wrote beyond the picks of a later one must not stay.
    mats[0].zero_()
    call.launch()
    assert found.counts.tolist() == [0, 9, 1, 0, 3]
    expected = grouped_pivoted_cholesky([mat.cpu() for mat in mats], ranks, backend="reference")
    for mat, rank, picks, want in zip(mats, ranks, found.picks, expected, strict=True):
        count = len(want.order)
        assert picks.order.tolist() == [*want.order.tolist(), *[-1] * (rank - count)]
        assert picks.factor.shape == (len(mat), rank)
        assert not picks.factor[:, count:].any()
        # A pick that is none leaves what was left.
        left = want.residual[-1] if count else mat.trace().cpu()
        assert torch.allclose(
            picks.residual[count:].cpu(), left.to(mat.dtype), rtol=0, atol=1e-12 * float(mat.trace())
        )


@pytest.mark.parametrize("place", [(3, 3), (3, 0)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_picks_of_what_is_not_finite_stop_and_say_so(device: str, bad: float, place: tuple[int, int]) -> None:
    mat = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])).to(device)
    mat[place] = mat[place[::-1]] = bad
    call = prepare_pivoted_cholesky([mat, torch.eye(4, device=device)], [4, 4], backend="cuda")
    call.launch()
    (picks, others), counts = call.results
    # The last row is met on the diagonal at once, beside it with the first pick.
    assert counts.tolist() == [int(place == (3, 0)), 4]
    assert not picks.residual.isfinite().any()
    assert others.order.tolist() == [0, 1, 2, 3]


def test_launches_of_any_strides_read_the_inputs_anew(device: str) -> None:
    spaced = torch.zeros(24, 36, dtype=torch.float64, device=device)[::2, ::3]
    picks = prepare_pivoted_cholesky([spaced], [2], backend="cuda")
    # Six dims that merge into no fewer.
    deep = torch.zeros(7, 5, 3, 2, 4, 6, device=device).permute(5, 3, 1, 0, 2, 4)[::2, :, 1:, 1:, 1:, ::2]
    keep = {2: torch.tensor([0, 3])}
    thin = prepare_gather([deep], [keep], backend="cuda")
    spaced.copy_(torch.diag(torch.arange(1.0, 13.0)))
    deep.copy_(cases.normal(*deep.shape))
    picks.launch()
    thin.launch()
    assert picks.results.picks[0].order.tolist() == [11, 10]
    assert torch.equal(thin.results[0], deep[:, :, keep[2].to(device)])


def test_what_cannot_be_made_ready_is_refused(device: str) -> None:
    x = torch.ones(3, 4, device=device)
    with pytest.raises(ValueError, match="covariance: expected one or more layers, got none"):
        prepare_covariance([])
    with pytest.raises(ValueError, match=r"covariance: expected dtype float32 or float64, got torch.float16"):
        prepare_covariance([x], dtype=torch.float16, backend="cuda")
    with pytest.raises(ValueError, match=r"expected results of float32 or of float64.*float32.*float64"):
        prepare_covariance([x, x.double()], backend="cuda")
    with pytest.raises(
        ValueError, match=r"expected sorted, distinct indices in 0..2, got 0..7 \(fc, dim 0\)"
    ):
        prepare_gather([x], [{0: torch.tensor([0, 7])}], names=["fc"], backend="cuda")
    with pytest.raises(ValueError, match=r"expected a rank in 0..2, got 3 \(fc\)"):
        prepare_pivoted_cholesky([torch.eye(2, device=device)], [3], names=["fc"], backend="cuda")
    with pytest.raises(ValueError, match="pivoted_cholesky: expected one or more matrices, got none"):
        prepare_pivoted_cholesky([], [])
    with pytest.raises(BackendUnavailable, match="eigvalsh: backend 'reference' has no calls made ready"):
        prepare_eigvalsh([torch.eye(2)], backend="reference")
