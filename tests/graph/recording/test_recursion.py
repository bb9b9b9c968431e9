"""Networks nested hundreds of levels deep: what runs as it is also runs while it is recorded and compared."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

import slimfast
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.recursion import nested_calls_allowed


class Level(nn.Module):
    """A layer around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x))


def _nested(levels: int) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    for _ in range(levels):
        model = Level(model)
    return model.eval()


@pytest.fixture
def usual_limit():
    # pytest's own frames, which differ from version to version, are not to count
    before = sys.getrecursionlimit()
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 1000)
    yield depth + 1000
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("levels", [100, 220])
def test_a_network_nested_deep_is_cut(usual_limit, levels):
    model, x = _nested(levels), torch.randn(2, 8)
    assert model(x).shape == (2, 4)
    thin = slimfast.slim(model, x, params=0.6)
    assert thin(x).shape == (2, 4)
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in model.parameters())
    assert sys.getrecursionlimit() == usual_limit


def test_the_limit_is_put_back_when_the_last_has_ended():
    network, before = Network.of(_nested(60)), sys.getrecursionlimit()
    deeper = Network.of(_nested(80))
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with nested_calls_allowed(deeper):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with nested_calls_allowed(network):
        low = sys.getrecursionlimit()
        thread.start()
        entered.wait()
        assert sys.getrecursionlimit() > low > before
    assert sys.getrecursionlimit() > low
    leave.set()
    thread.join()
    assert sys.getrecursionlimit() == before


def test_the_limit_is_put_back_after_an_error_and_left_alone_where_it_is_enough():
    before = sys.getrecursionlimit()
    with pytest.raises(ValueError, match="stop"), nested_calls_allowed(Network.of(_nested(60))):
        raise ValueError("stop")
    assert sys.getrecursionlimit() == before
    with nested_calls_allowed(Network.of(_nested(5))):
        assert sys.getrecursionlimit() == before
