"""Calls made ready: launched again they read inputs anew, allocate nothing, and a CUDA graph holds them."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest
import torch
from support import kernels_cases as cases
from torch import Tensor

from slimfast.errors import BackendUnavailable, SlimfastError
from slimfast.kernels import (
    PaddedCholesky,
    Prepared,
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_pivoted_cholesky,
    prepare_covariance,
    prepare_eigvalsh,
    prepare_gather,
    prepare_pivoted_cholesky,
)

KEEPS = [{0: torch.tensor([0, 2, 5]), 1: torch.tensor([1, 3])}, {0: torch.tensor([1, 39])}, {}]


def layers(device: str) -> list[Tensor]:
    # One split along d, one on the columns side, one of two tiles.
    shapes = ((40, 1100), (70, 33), (9, 17), (130, 150))
    return [cases.normal(*shape, dtype=torch.float32).to(device) for shape in shapes]


def tensors(device: str) -> list[Tensor]:
    return [cases.normal(*shape).to(device) for shape in ((6, 4, 3, 3), (40, 7), (5,))]


def ready(op: str, device: str) -> tuple[list[Tensor], Prepared[Any], Any]:
    """Inputs, the call made ready, and the same op to compare with."""
    if op == "covariance":
        xs = layers(device)
        return (
            xs,
            prepare_covariance(xs, backend="cuda"),
            lambda: grouped_covariance(xs, backend="cuda").matrices,
        )
    if op == "eigvalsh":
        mats = [cases.layer_like(m).to(device) for m in (3, 31, 40, 70)]
        return mats, prepare_eigvalsh(mats, backend="cuda"), lambda: grouped_eigvalsh(mats, backend="cuda")
    if op == "pivoted_cholesky":
        mats, ranks = semidefinite(device)
        return (
            mats,
            prepare_pivoted_cholesky(mats, ranks, backend="cuda"),
            lambda: [
                part for picks in grouped_pivoted_cholesky(mats, ranks, backend="cuda") for part in picks
            ],
        )
    xs = tensors(device)
    return xs, prepare_gather(xs, KEEPS, backend="cuda"), lambda: grouped_gather(xs, KEEPS, backend="cuda")


def semidefinite(device: str) -> tuple[list[Tensor], list[int]]:
    """Of full rank, and of ranks 3, 1 and 0, of which more picks are asked for; one that a cluster takes."""
    mats = [cases.layer_like(40).float(), cases.wishart(9), torch.ones(12, 12), torch.zeros(5, 5)]
    x = cases.normal(520, 3)
    return [mat.to(device) for mat in (*mats, x @ x.T)], [7, 9, 4, 2, 5]


def results(call: Prepared[Any]) -> list[Tensor]:
    found = call.results
    if isinstance(found, PaddedCholesky):
        return [
            part
            for (order, factor, residual), count in zip(found.picks, found.counts.tolist(), strict=True)
            for part in (order[:count], factor[:, :count], residual[:count])
        ]
    return list(getattr(found, "matrices", found))


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


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_graph_of_covariance_and_gather_replays(backend: str) -> None:
    xs, ts = layers("cuda"), tensors("cuda")
    calls = [prepare_covariance(xs, backend=backend), prepare_gather(ts, KEEPS, backend=backend)]
    replay_and_compare(
        [*xs, *ts],
        calls,
        lambda: [
            *grouped_covariance(xs, backend=backend).matrices,
            *grouped_gather(ts, KEEPS, backend=backend),
        ],
    )


@pytest.mark.gpu
@gpu
def test_a_graph_of_spectra_replays() -> None:
    xs = [cases.normal(n, 3 * n, dtype=torch.float32).cuda() for n in (7, 40, 200, 700)]
    covariance = prepare_covariance(xs)
    values = prepare_eigvalsh(covariance.results.matrices)
    replay_and_compare(
        xs, [covariance, values], lambda: grouped_eigvalsh(grouped_covariance(xs).matrices), last_only=True
    )


@pytest.mark.gpu
@gpu
def test_a_graph_of_covariance_and_picks_replays() -> None:
    xs = [cases.normal(n, 3 * n, dtype=torch.float32).cuda() for n in (7, 40, 600)]
    covariance = prepare_covariance(xs)
    picks = prepare_pivoted_cholesky(covariance.results.matrices, [3, 20, 30])
    replay_and_compare(
        xs,
        [covariance, picks],
        lambda: [
            part
            for found in grouped_pivoted_cholesky(grouped_covariance(xs).matrices, [3, 20, 30])
            for part in found
        ],
        last_only=True,
    )


def replay_and_compare(
    inputs: list[Tensor], calls: list[Prepared[Any]], again: Any, *, last_only: bool = False
) -> None:
    for call in calls:
        call.launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call.launch()
    for factor in (1.0, -2.0, 0.5):
        for x in inputs:
            x.mul_(factor)
        graph.replay()
        found = [r.clone() for call in (calls[-1:] if last_only else calls) for r in results(call)]
        assert all(map(torch.equal, found, again())), factor


@pytest.mark.gpu
@gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_call_within_a_capture_says_what_to_do() -> None:
    xs = tensors("cuda")
    grouped_gather(xs, KEEPS, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(SlimfastError, match="calls made ready before it"):
        grouped_gather(xs, KEEPS, backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_each_device_runs_its_own() -> None:
    for number in (1, 0):
        xs, ts = layers(f"cuda:{number}"), tensors(f"cuda:{number}")
        for backend in ("cuda", "triton"):
            matrices = grouped_covariance(xs, backend=backend).matrices
            assert {m.device.index for m in matrices} == {number}
            for x, matrix in zip(xs, matrices, strict=True):
                side = x if x.shape[0] <= x.shape[1] else None
                if side is not None:
                    assert torch.allclose(matrix, torch.cov(x), atol=1e-4)
            thin = grouped_gather(ts, KEEPS, backend=backend)
            assert torch.equal(thin[1], ts[1][[1, 39]])
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@gpu
def test_launches_go_to_the_current_stream() -> None:
    xs = tensors("cuda")
    call = prepare_gather(xs, KEEPS, backend="cuda")
    call.launch()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Long enough that a launch on another stream would have read before the inputs are written.
        torch.cuda._sleep(50_000_000)
        for x in xs:
            x.fill_(3.0)
        call.launch()
        sums = [thin.sum() for thin in call.results]
    stream.synchronize()
    assert [float(s) for s in sums] == [3.0 * thin.numel() for thin in call.results]
