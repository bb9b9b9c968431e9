"""What layers compute with: weights made of parameters before each use, and batch norms right behind."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import trace_example
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from slimfast.graph import trace_channels
from slimfast.graph.computed_weights import ComputedWeight, Slot, Step
from slimfast.graph.recording.module_copies import named_tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated in favor of:FutureWarning")
X = torch.randn(2, 8, 11)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(8, 12, 3), nn.ReLU(), nn.Conv1d(12, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 1)
    ).eval()


class Softplus(nn.Module):
    """Weights that are never negative, scaled by a buffer for each input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.rand(inputs, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.nn.functional.softplus(weight) * self.gain


def masked(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.5)


def masked_twice(layer: nn.Module) -> None:
    masked(layer)
    prune.ln_structured(layer, "weight", 2, 2, 0)


def old_weight_norm(layer: nn.Module) -> None:
    weight_norm(layer)
    with torch.no_grad():
        layer.weight_g *= torch.rand_like(layer.weight_g)


def new_weight_norm(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original1 *= 3


def old_spectral_norm(layer: nn.Module) -> None:
    spectral_norm(layer)


def new_spectral_norm(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer)


def custom(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Softplus(layer.weight.shape[1]))


def norm_of_softplus(layer: nn.Module) -> None:
    custom(layer)
    parametrizations.spectral_norm(layer)


KINDS = [masked, masked_twice, old_weight_norm, new_weight_norm, old_spectral_norm, new_spectral_norm, custom,
         norm_of_softplus]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["0", "2"])
def test_the_weight_is_what_the_layer_computes_with(kind, layer):
    model = chain()
    kind(model.get_submodule(layer))
    model.eval()
    graph = trace_example(model, X)
    (name,) = graph.computed
    assert name == f"{layer}.weight"
    model(X)
    made = graph.computed[name].compute(named_tensors(model))
    assert torch.equal(made, model.get_submodule(layer).weight)
    measured = {(m.tensor, m.dim, m.role) for group in graph for m in graph.measured(group)}
    weights = {(f"{n}.weight", 1, "consumer") for n in "24"} | {(f"{n}.weight", 0, "producer") for n in "02"}
    assert weights == {key for key in measured if key[0].endswith("weight")}


def test_tensors_stay_as_they_are_when_a_weight_is_made_in_place():
    class InPlace(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.clone().mul_(2).add_(1)

    model = chain()
    parametrize.register_parametrization(model[0], "weight", InPlace())
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    graph = trace_example(model, X)
    assert torch.equal(graph.computed["0.weight"].compute(named_tensors(model)), model[0].weight)
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(model).items())


def test_weights_that_are_taken_as_they_are_stand_for_themselves():
    graph = trace_example(chain(), X)
    assert graph.computed == {}
    assert graph.producers(graph["0"]) == graph["0"].producers()


def test_a_weight_made_of_a_tensor_that_is_kept_elsewhere_is_left_to_its_parameter():
    mask = torch.rand(12, 1, 1)
    model = chain()

    def forward(net, x):
        first = net.body[0]
        x = torch.nn.functional.conv1d(x, first.weight * mask.to(x.device), first.bias)
        return net.body[1:](x)

    graph = trace_example(Net(forward, body=model).eval(), X)
    assert graph.computed == {}


def test_a_factored_weight_is_one_weight():
    def forward(net, x):
        return net.last((x @ (net.a @ net.b)).relu())

    net = Net(
        forward, a=nn.Parameter(torch.randn(8, 3)), b=nn.Parameter(torch.randn(3, 10)), last=nn.Linear(10, 2)
    )
    graph = trace_example(net.eval(), torch.randn(4, 8))
    (group,) = graph
    assert [(m.tensor, m.dim) for m in graph.producers(group)] == [("weight", 1)]
    made = graph.computed["weight"].compute(named_tensors(net))
    assert torch.allclose(made, (net.a @ net.b).detach())


def with_norm(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(8, 12, 3), *between, nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 4, 1)
    ).eval()


def test_what_is_behind_a_weight_is_known():
    found = trace_example(with_norm(), X).behind["0.weight"]
    assert (found.dim, found.silencers, found.mean) == (0, ("1.weight",), "1.running_mean")
    # a constant behind the nonlinearity as well, but the mean of the norm is not that of the layer
    found = trace_example(with_norm(nn.ReLU(inplace=True)), X).behind["0.weight"]
    assert (found.silencers, found.mean) == (("2.weight",), None)
    model = with_norm()
    parametrizations.weight_norm(model[0])
    assert trace_example(model, X).behind["0.weight"].silencers == ("1.weight",)
    transposed = nn.Sequential(nn.ConvTranspose1d(8, 12, 3), nn.BatchNorm1d(12), nn.Conv1d(12, 4, 1)).eval()
    assert trace_example(transposed, X).behind["0.weight"].dim == 1


def test_a_scale_that_is_made_of_a_mask_stands_for_its_parameter():
    model = with_norm()
    prune.random_unstructured(model[1], "weight", 0.5)
    graph = trace_example(model, X)
    assert graph.behind["0.weight"].silencers == ("1.weight",)
    assert "1.weight" not in graph.behind
    scale = graph.effective(dict(model.state_dict()))["1.weight"]
    assert torch.equal(scale, model[1].weight_orig * model[1].weight_mask)
    followers = {m.tensor for m in graph.measured(graph["0"]) if m.role == "follower"}
    assert followers >= {"1.weight", "1.bias"}
    assert "1.weight_orig" not in followers


def test_depthwise_filters_and_their_norms_are_on_the_way():
    depthwise = nn.Conv1d(12, 12, 3, groups=12, bias=False)
    prune.random_unstructured(depthwise, "weight", 0.2)
    layers = [nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12), nn.ReLU6(inplace=True), depthwise, nn.BatchNorm1d(12)]
    graph = trace_example(nn.Sequential(*layers, nn.SiLU(), nn.Conv1d(12, 4, 1)).eval(), X)
    assert graph.behind["0.weight"].silencers == ("1.weight", "3.weight", "4.weight")
    assert graph.behind["3.weight"].silencers == ("4.weight",)


def test_nothing_is_behind_a_weight_that_something_else_reads():
    def forward(net, x):
        y = net.first(x)
        return net.last(net.norm(y).relu() + y)

    net = Net(forward, first=nn.Conv1d(8, 12, 1), norm=nn.BatchNorm1d(12), last=nn.Conv1d(12, 4, 1))
    assert trace_example(net.eval(), X).behind == {}

    def twice(net, x):
        return net.last(net.norm(net.first(x)) + net.first(x * 2))

    net = Net(twice, first=nn.Conv1d(8, 12, 1), norm=nn.BatchNorm1d(12), last=nn.Conv1d(12, 4, 1))
    assert trace_example(net.eval(), X).behind == {}

    def before_it_changes(net, x):
        y = net.first(x)
        kept = y * 2
        return net.last(net.norm(y.relu_()) + kept)

    net = Net(before_it_changes, first=nn.Conv1d(8, 12, 1), norm=nn.BatchNorm1d(12), last=nn.Conv1d(12, 4, 1))
    assert trace_example(net.eval(), X).behind == {}


def test_nothing_is_behind_a_weight_that_another_call_uses_otherwise():
    def forward(net, x, skip=None):
        y = net.first(x)
        return net.last(y.relu() if skip is not None else net.norm(y).relu())

    net = Net(forward, first=nn.Conv1d(8, 12, 1), norm=nn.BatchNorm1d(12), last=nn.Conv1d(12, 4, 1)).eval()
    parametrizations.weight_norm(net.first)
    assert list(trace_channels(net, X).behind) == ["first.weight"]
    graph = trace_channels(net, X, also=[(X, X)])
    assert graph.behind == {}
    assert list(graph.computed) == ["first.weight"]


def test_making_a_weight_leaves_what_it_is_made_of_as_it_is():
    """A step may write to what it is given, as observers of quantisation-aware training do."""
    doubled = Step("aten.mul_", {"self": Slot(0), "other": 2.0}, (1,), 0)
    tensors = {"made_of": torch.ones(2)}
    assert ComputedWeight("w", (2,), {0: "made_of"}, (doubled,), 1, {}).compute(tensors).tolist() == [2, 2]
    assert tensors["made_of"].tolist() == [1, 1]


def test_nothing_is_behind_a_weight_whose_axis_is_not_all_that_its_layer_makes():
    """The weight of a grouped transposed convolution has the channels of one group."""
    first, norm = nn.ConvTranspose1d(8, 12, 1, groups=2), nn.BatchNorm1d(12)
    net = Net(lambda net, x: net.last(net.norm(net.first(x)).relu()), first=first, norm=norm,
              last=nn.Conv1d(12, 4, 1))  # fmt: skip
    assert "first.weight" not in trace_example(net.eval(), X).behind


def test_a_parameter_of_two_computed_weights_is_measured_by_one_of_them():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = nn.Parameter(torch.randn(6, 8))
            self.register_buffer("one", torch.rand(6, 8))
            self.register_buffer("two", torch.rand(6, 8))
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            x = x.transpose(1, 2)
            first = nn.functional.linear(x, self.kept * self.one)
            return self.last(first + nn.functional.linear(x, self.kept * self.two))

    graph = trace_example(Twice().eval(), X)
    stands = [key for weight in graph.computed.values() for key in weight.stands_for]
    assert ("kept", 0) in stands
    assert len(stands) == len(set(stands))
