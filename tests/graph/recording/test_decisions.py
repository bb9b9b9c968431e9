"""What a forward decides by values: noted once on real tensors, handed to every recording that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import summary
from torch import nn
from torch._subclasses.fake_tensor import is_fake

import slimfast
from slimfast.errors import UnsupportedGraph
from slimfast.graph import trace_channels
from slimfast.graph.recording.decisions import Decider, OtherDecision
from slimfast.graph.recording.forward import record, record_at
from slimfast.graph.recording.network import Network


def _rows(self, x):
    """One row of 16 features for each of 36 places, and a score for each."""
    features = self.body(x)
    return features.flatten(2).transpose(1, 2)[0], self.score(features).flatten()


def _nonzero(self, x):
    rows, score = _rows(self, x)
    return self.head(rows[torch.nonzero(score > 0)[:, 0]])


def _mask(self, x):
    rows, score = _rows(self, x)
    return self.head(rows[score > 0])


def _mask_in_the_middle(self, x):
    rows, score = _rows(self, x)
    return self.head(torch.stack([rows, -rows])[:, score > 0])


def _mask_of_two_axes(self, x):
    features = self.body(x)[0].permute(1, 2, 0)
    return self.head(features[self.score(self.body(x))[0, 0] > 0])


def _written_behind_a_mask(self, x):
    rows, score = _rows(self, x)
    chosen = rows[score > 0]
    rows = rows.clone()
    rows[score > 0] = chosen * 2
    return self.head(rows)


def _unique(self, x):
    rows, score = _rows(self, x)
    levels = torch.unique((score * 3).round())
    return self.head(rows[: len(levels)])


def _number(self, x):
    rows, score = _rows(self, x)
    return self.head(rows[: int((score > 0).sum())])


def _listed(self, x):
    rows, score = _rows(self, x)
    places = (score > 0).long().argsort()[: 1 + int((score > 0).sum()) // 2].tolist()
    return self.head(torch.stack([rows[place] for place in places]))


def _selected(self, x):
    rows, score = _rows(self, x)
    return self.head(rows * torch.masked_select(score, score > 0).mean())


FORWARDS = [_nonzero, _mask, _mask_in_the_middle, _mask_of_two_axes, _written_behind_a_mask, _unique, _number,
            _listed, _selected]  # fmt: skip


def _network(forward):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    )
    return Net(forward, body=body, score=nn.Conv2d(16, 1, 1), head=nn.Linear(16, 4)).eval()


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_network_whose_lengths_depend_on_values_is_cut_as_any_other(forward):
    model, x = _network(forward), torch.randn(1, 3, 6, 6)
    graph = trace_channels(model, x)
    assert summary(graph) == {"body.0": ("channel", 16), "body.2": ("channel", 16)}
    thin = slimfast.slim(model, x, params=0.6)
    for inputs in (x, torch.randn(1, 3, 6, 6)):
        assert thin(inputs).shape[-1] == 4
    assert thin.body[2].out_channels < 16


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_same_is_decided_with_and_without_data(forward):
    network, x = Network.of(_network(forward)), torch.randn(1, 3, 6, 6)
    found = record(network, (x,), {})
    real = record_at(network, (x,), {}, "real")
    assert found.tensor_mode == "fake"
    assert [d.operation for d in found.decisions] == [d.operation for d in real.decisions]
    assert [ref.shape for ref in found.outputs] == [ref.shape for ref in real.outputs]
    # to list a tensor without data takes operations
    shapes, expected = ([c.outputs[0].shape for c in r.calls if c.op == "aten.linear"] for r in (found, real))
    assert shapes == expected


def test_lengths_stay_those_of_the_first_recording_with_other_values():
    network = Network.of(_network(_mask))
    first, other = torch.randn(1, 3, 6, 6), torch.randn(1, 3, 6, 6) * 3 + 1
    lengths = [record(network, (x,), {}).outputs[0].shape for x in (first, other)]
    assert lengths[0] != lengths[1], "the case needs inputs that decide otherwise"
    decisions = record(network, (first,), {}).decisions
    for mode in ("fake", "real"):
        again = record_at(network, (other,), {}, mode, decisions=decisions)
        assert again.outputs[0].shape == lengths[0]


def test_a_number_that_python_made_is_never_handed_on():
    # the tensor of a width must hold the width of the network that runs
    def forward(self, x):
        y = self.a(x)
        width = int(torch.tensor(y.shape[-1]))
        rows = y[y.sum(-1) > 0]
        return self.b(rows.reshape(-1, 2, width // 2).flatten(1))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    x = torch.randn(20, 8)
    thin = slimfast.slim(model, x, params=0.6)
    assert thin.a.out_features < 32
    assert thin(x).shape[1] == 4


def test_what_cannot_be_copied_to_tensors_without_data_stays_real():
    def forward(self, x):
        places = np.flatnonzero(self.a(x).detach().numpy().sum(1) > 0)
        return self.b(torch.relu(self.a(x)))[places[0] : places[0] + 1]

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    assert record(Network.of(model), (torch.randn(20, 8),), {}).tensor_mode == "real"


def test_an_edge_mask_uses_the_edges_of_the_example():
    # a made-up pair of equal nodes would change the number of edges
    def forward(self, x, edges):
        edges = edges[:, edges[0] != edges[1]]
        h = torch.relu(self.a(x))
        return self.b(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    edges = torch.randint(0, 10, (2, 30))
    edges[:, :4] = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert summary(trace_channels(model, (torch.randn(10, 8), edges))) == {"a": ("channel", 32)}
    thin = slimfast.slim(model, (torch.randn(10, 8), edges), params=0.6)
    assert thin.a.out_features < 32


def test_decisions_in_another_order_are_refused_by_name():
    noted = Decider(None, real=True)
    x = torch.tensor([0.0, 1.0, 2.0])
    assert noted.run("length", torch.ops.aten.nonzero.default, (x,), {}).tolist() == [[1], [2]]
    assert noted.listed(x) == [0.0, 1.0, 2.0]
    again = Decider(noted.decisions, real=False)
    assert again.run("length", torch.ops.aten.nonzero.default, (x,), {}).shape == (2, 1)
    with pytest.raises(OtherDecision, match=r"expected aten\._local_scalar_dense.*, got aten\.nonzero"):
        again.run("length", torch.ops.aten.nonzero.default, (x,), {})
    assert again.listed(x) == [0.0, 1.0, 2.0]
    with pytest.raises(OtherDecision, match=r"expected nothing more, got aten\._local_scalar_dense"):
        again.listed(x)


def test_what_is_handed_on_may_be_written_into():
    noted = Decider(None, real=True)
    x = torch.tensor([0.0, 1.0, 2.0])
    noted.run("length", torch.ops.aten.nonzero.default, (x,), {}).fill_(7)
    for _ in range(2):
        again = Decider(noted.decisions, real=True)
        got = again.run("length", torch.ops.aten.nonzero.default, (x,), {})
        assert got.tolist() == [[1], [2]]
        got.fill_(9)


def test_a_thin_network_that_decides_otherwise_says_so():
    def forward(self, x):
        h = torch.relu(self.a(x))
        for _ in range(self.a.out_features // 8):
            h = h + (h.sum() > 0).item()
        return self.b(h)

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    network, x = Network.of(model), torch.randn(4, 8)
    decisions = record(network, (x,), {}).decisions
    model.a.out_features = 40
    with pytest.raises(UnsupportedGraph, match="decides by values otherwise: expected nothing more"):
        record(network, (x,), {}, decisions=decisions)


def test_training_may_decide_otherwise():
    # the auxiliary head reads rows that only training chooses
    def forward(self, x):
        h = torch.relu(self.a(x))
        out = self.b(h[h.sum(-1) > 0])
        return (out, self.aux(h[h.mean(-1) > 0.1])) if self.training else out

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4), aux=nn.Linear(32, 4)).eval()
    x = torch.randn(20, 8)
    graph = trace_channels(model, x)
    assert "aux.weight" in {member.tensor for member in graph["a"].members}
    thin = slimfast.slim(model, x, params=0.6)
    assert thin.aux.in_features == thin.a.out_features < 32
    assert thin.train()(x)[1].shape[1] == 4


def _skips_a_mask_without_data(self, x):
    # Hugging Face's masks: what is not masked at all is looked for only where tensors have data
    features = torch.relu(self.a(x))
    if not is_fake(features):
        seen = x.abs().sum(-1) > 0
        if not seen.all():
            features = features * seen[:, None]
    return self.b(features[: 1 + int((x[:, 0] > 0).sum())])


def _asks_more_than_data_do(self, x):
    features = torch.relu(self.a(x))
    if int((x[:, 1] > 0).sum()) < 0 or (not is_fake(x) and bool((x != 0).all())):
        features = features * 2
    return self.b(features[: 1 + int((x[:, 0] > 0).sum())])


@pytest.mark.parametrize("forward", [_skips_a_mask_without_data, _asks_more_than_data_do])
def test_what_only_data_decide_is_compared_on_data(forward):
    torch.manual_seed(0)
    model, x = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval(), torch.randn(40, 8)
    network = Network.of(model)
    recorded = record(network, (x,), {})
    assert recorded.tensor_mode == "real", "the case needs a forward that goes another way without data"
    again = record(network, (x,), {}, decisions=recorded.decisions)
    assert [(c.op, [o.shape for o in c.outputs]) for c in again.calls] == [
        (c.op, [o.shape for o in c.outputs]) for c in recorded.calls
    ]
    thin = slimfast.slim(model, x, params=0.5)
    assert thin.a.out_features < 32
    for inputs in (torch.randn(9, 8), x):
        assert thin(inputs).shape == model(inputs).shape
