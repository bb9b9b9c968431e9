"""Calls made ready on a GPU: replayed by a CUDA graph, on each device, on the current stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import kernels_cases as cases
from support.ready_cases import KEEPS, layers, results, tensors
from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.kernels import (
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
