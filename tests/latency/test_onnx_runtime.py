"""Networks in ONNX Runtime: several exported together compute what each computes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.latency import latency_table, onnx_runtime

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Twice(nn.Module):
    """Two tensors in, two out."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((3,), shift, device="cpu"))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * y + self.shift, (x - y).relu()


class Branching(nn.Module):
    """A function with a graph inside its graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda t: t + 1.0, lambda t: t - 1.0, (x,))


def example(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


@pytest.fixture
def exports(monkeypatch):
    """Count the exports."""
    counted = []
    plain = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda network, *a, **k: counted.append(network) or plain(network, *a, **k)
    )
    return counted


def test_networks_of_one_export_compute_what_they_are(exports):
    torch.manual_seed(0)
    # the same layer and the same input twice: nothing of one may go with the other
    layer, same = nn.Linear(6, 4, device="cpu"), example(0, 2, 6)
    networks = [layer, Twice(2.0), layer, nn.Conv2d(3, 5, 3, device="cpu").eval(), Twice(2.0), nn.ReLU()]
    given = [(same,), (example(1, 3), example(2, 3)), (same,), (example(3, 1, 3, 8, 8),),
             (example(4, 3), example(5, 3)), (example(6, 7),)]  # fmt: skip
    runs = onnx_runtime.onnx_runs(networks, given, 1)
    assert len(exports) == 1
    for network, args, run in zip(networks, given, runs, strict=True):
        expected = network(*args)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = run()
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other.detach())


def test_a_part_holds_its_own_weights_alone():
    small, large = nn.Linear(6, 4, device="cpu"), nn.Linear(500, 400, device="cpu")
    together = onnx_runtime._Together([small, large], [(example(0, 2, 6),), (example(1, 2, 500),)])
    whole = onnx_runtime._exported(together, (example(0, 2, 6), example(1, 2, 500)), {})
    part = onnx_runtime._part(whole, [whole.graph.input[0].name], [whole.graph.output[0].name])
    assert part.ByteSize() < 10_000 < 500 * 400 < whole.ByteSize()


def test_a_graph_inside_a_graph_keeps_what_it_reads():
    networks = [Branching(), nn.ReLU(), Branching()]
    given = [(example(0, 4).abs(),), (example(1, 4),), (-example(2, 4).abs(),)]
    runs = onnx_runtime.onnx_runs(networks, given, 1)
    for network, args, run in zip(networks, given, runs, strict=True):
        torch.testing.assert_close(torch.from_numpy(run()[0]), network(*args))


def test_what_cannot_be_taken_together_is_taken_alone(exports):
    class Unread(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + 1.0

    networks, given = [Unread(), nn.ReLU()], [(example(0, 4), example(1, 4)), (example(2, 4),)]
    for network, args, run in zip(networks, given, onnx_runtime.onnx_runs(networks, given, 1), strict=True):
        torch.testing.assert_close(torch.from_numpy(run()[0]), network(*args))


def test_arguments_go_to_their_own_inputs_in_any_order_and_unread_ones_to_none():
    class Three(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return x - 2.0 * z

    x, y, z = (example(seed, 4) for seed in range(3))
    for args, kwargs in (((x, y, z), {}), ((x,), {"z": z, "y": y}), ((), {"z": z, "x": x, "y": y})):
        (found,) = onnx_runtime.onnx_run(Three(), (args, kwargs), 1)()
        torch.testing.assert_close(torch.from_numpy(found), x - 2.0 * z)


def test_the_network_that_cannot_be_taken_is_named():
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).abs()

    with pytest.raises(SlimfastError, match=r"^latency: ONNX Runtime cannot take Sorted: ") as raised:
        onnx_runtime.onnx_runs([nn.ReLU(), Sorted()], [(example(0, 4),), (example(1, 3, 3),)], 1)
    assert "\n" not in str(raised.value)


def test_a_table_needs_few_exports(exports):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, device="cpu"), nn.ReLU(), nn.Conv2d(16, 24, 3, device="cpu"), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 5, device="cpu"),
    ).eval()  # fmt: skip
    given = example(0, 1, 3, 8, 8)
    graph = trace_channels(model, given)
    table = latency_table(graph, model, given, runtime="onnxruntime", threads=1)
    points = sum(len(piece.seconds) for piece in table.pieces)
    # those of the whole pieces, those of all others, and of whole networks at four widths
    assert len(exports) <= 1 + -(-points // 32) + 4
    assert points > 32
    assert all(seconds > 0 for piece in table.pieces for seconds in piece.seconds.values())
    assert table.runtime == "onnxruntime"
