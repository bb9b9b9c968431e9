"""Calls made ready: launched again they read inputs anew, allocate nothing, and a CUDA graph holds them."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import kernels_cases as cases
import pytest
import torch
from torch import Tensor

from slimfast.errors import BackendUnavailable, SlimfastError
from slimfast.kernels import (
    Prepared,
    grouped_covariance,
    grouped_eigvalsh,
    grouped_gather,
    prepare_covariance,
    prepare_eigvalsh,
    prepare_gather,
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
    xs = tensors(device)
    return xs, prepare_gather(xs, KEEPS, backend="cuda"), lambda: grouped_gather(xs, KEEPS, backend="cuda")


def results(call: Prepared[Any]) -> list[Tensor]:
    return list(getattr(call.results, "matrices", call.results))


OPS = ("covariance", "eigvalsh", "gather")


@pytest.mark.parametrize("op", OPS)
def test_every_launch_reads_the_inputs_anew(device: str, op: str) -> None:
    inputs, call, again = ready(op, device)
    for factor in (1.0, -2.0, 0.5):
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
