"""What tests of recurrent layers share: a network around one, and cuts compared with the masked one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slimfast.graph import ChannelGraph, trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network
from slimfast.pruning.verification import verify
from support.graph_helpers import random_keeps


class Between(nn.Module):
    """A layer in front of a recurrent one, and one behind it."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.a, self.r, self.b = nn.Linear(3, rnn.input_size), rnn, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.r(self.a(x).relu())[0])


def double_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def check_cuts(
    model: nn.Module, arguments: tuple[Any, ...], other: tuple[Any, ...], seeds: int = 3
) -> ChannelGraph:
    """Cut at random, the thin network computes what the masked one does, with other arguments too."""
    model = model.double().eval()
    graph = trace_channels(model, double_of(arguments))
    for seed in range(seeds):
        keeps = random_keeps(graph, seed, exact=False)
        cut = Cut(graph, keeps)
        thin = cut.thin_copy(Network.of(model))
        assert check_thin(thin, cut) == []
        for given_arguments in (arguments, other):
            found = verify(model, thin, graph, keeps, double_of(given_arguments))
            assert found.max_error < 1e-12
            assert set(found.compared) == set(keeps)
    return graph
