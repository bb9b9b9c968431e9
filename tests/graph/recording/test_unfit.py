"""Quantised networks and others that hold no plain tensors: refused in one line that says what to do."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import slimfast

X = torch.randn(4, 64)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval()


class Packed(torch.Tensor):
    """A weight of integers and a scale, as torchao has them."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self):
        return ["whole", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, size, stride):
        return cls(inner["whole"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scale)
        plain = [a.whole * a.scale if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


def _packed():
    model = _network()
    weight = torch.randint(-8, 8, (128, 64), dtype=torch.int8)
    model[0].weight = nn.Parameter(Packed(weight, torch.tensor(0.1)), requires_grad=False)
    return model


def _dynamic():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(_network(), {nn.Linear})


def _buffer():
    model = _network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.register_buffer("table", torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8))
    return model


def _static():
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(quantization.QuantStub(), *_network(), quantization.DeQuantStub()).eval()
        model.qconfig = quantization.default_qconfig
        quantization.prepare(model, inplace=True)(X)
        return quantization.convert(model)


def _static_fx():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(_network(), get_default_qconfig_mapping("x86"), (X,))
        prepared(X)
        return convert_fx(prepared)


NETWORKS = [
    (_static, r"0 is quantised \(torch\.ao\.nn\.quantized\..*Quantize\)"),
    (_static_fx, r"0 is quantised \(torch\.ao\.nn\.intrinsic\.quantized\..*LinearReLU\)"),
    (_packed, r"0\.weight is no plain tensor but quantised or packed \(Packed\)"),
    (_dynamic, r"0 is quantised \(torch\.ao\.nn\.quantized\.dynamic\..*Linear\)"),
    (_buffer, r"table is quantised \(torch\.qint8\)"),
]


@pytest.mark.parametrize(("make", "message"), NETWORKS)
def test_a_quantised_network_is_refused_with_what_to_do(make, message):
    model = make()
    for verb in (
        lambda: slimfast.trace_channels(model, X),
        lambda: slimfast.plan(model, X, params=0.5),
        lambda: slimfast.slim(model, X, params=0.5),
    ):
        with pytest.raises(
            slimfast.UnsupportedGraph, match=f"^{message}; slim the network first, and quantise"
        ):
            verb()


def test_what_is_advised_works():
    thin = slimfast.slim(_network(), X, params=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(thin, {nn.Linear})
    assert small(X).shape == (4, 32)


def _graph_convolution():
    class GraphConvolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

        def forward(self, x, edges):
            return self.b(edges @ torch.relu(self.a(x)))

    return GraphConvolution().eval()


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_examples_are_refused_and_what_is_made_of_dense_ones_takes_them(layout):
    model, x, edges = _graph_convolution(), torch.randn(5, 6), torch.eye(5).roll(1, 0)
    name = str(layout).removeprefix("torch.")
    with warnings.catch_warnings():
        # torch says that its layouts are new
        warnings.simplefilter("ignore")
        sparse = edges.to_sparse(layout=layout)
        with pytest.raises(
            TypeError, match=rf"^example: expected dense tensors, got one of layout {name}: give its to_dense"
        ):
            slimfast.plan(model, (x, sparse), params=0.5)
        thin = slimfast.slim(model, (x, edges), params=0.5)
        torch.testing.assert_close(thin(x, sparse), thin(x, edges))
    assert thin.a.out_features < 32


def test_rows_of_several_lengths_are_refused_as_examples_and_inside():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

        def forward(self, first, second):
            rows = torch.nested.nested_tensor([first, second], layout=torch.jagged)
            return torch.nested.to_padded_tensor(self.b(torch.relu(self.a(rows))), 0.0)

    rows = (torch.randn(2, 6), torch.randn(5, 6))
    assert Inside()(*rows).shape == (2, 5, 3)
    with pytest.raises(slimfast.errors.UnsupportedGraph, match=": a nested tensor cannot be followed"):
        slimfast.plan(Inside().eval(), rows, params=0.5)
    with pytest.raises(TypeError, match="example: expected tensors padded to one length, got a nested"):
        slimfast.plan(_network(), torch.nested.nested_tensor(list(rows), layout=torch.jagged), params=0.5)


def test_forces_that_are_a_gradient_say_that_nothing_is_differentiated():
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    model, x = Forces().eval(), torch.randn(4, 6)
    assert model(x).shape == (4, 6)
    with pytest.raises(slimfast.errors.UnsupportedGraph, match="nothing is differentiated here: give"):
        slimfast.plan(model, x, params=0.5)
    assert slimfast.slim(model.energy, x, params=0.5)(x).shape == (4, 1)


def test_layers_that_wait_for_their_first_call_are_named_wherever_they_come_in(tmp_path):
    def lazy():
        return nn.Sequential(nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3)).eval()

    model, x = lazy(), torch.randn(4, 6)
    with pytest.raises(slimfast.errors.UnsupportedGraph, match=r"^0\.weight: a lazy parameter has no shape"):
        slimfast.plan(model, x, params=0.5)
    model(x)
    thin = slimfast.slim(model, x, params=0.5)
    slimfast.save(thin, tmp_path / "thin.safetensors")
    with pytest.raises(slimfast.errors.UnsupportedGraph, match=r"^0\.weight: a lazy parameter has no shape"):
        slimfast.load(tmp_path / "thin.safetensors", lazy())
    again = lazy()
    again(x)
    assert torch.equal(slimfast.load(tmp_path / "thin.safetensors", again)(x), thin(x))
