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
