"""Shapes known without asking PyTorch: the same tensors as PyTorch's own, or no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from slimfast.graph.recording.forward import record
from slimfast.graph.recording.meta_shortcuts import shortcut_of
from slimfast.graph.recording.network import Network


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of an ATen operation by name."""
    bound = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return defaults | bound


# An answer that says itself that the operands do not fit.
_NO = object()


def _answer(func: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return shortcut_of(func._schema.name.replace("::", "."))(_arguments(func, args, kwargs))
    except RuntimeError:
        return _NO


def _agree(func: Any, *args: Any, known: bool | None = None, **kwargs: Any) -> None:
    """The answer is PyTorch's own in shape, strides and dtype, or there is none; ``known``: which of the
    two."""
    found = _answer(func, *args, **kwargs)
    if known is not None:
        assert (found is not None and found is not _NO) == known
    if found is _NO:
        with pytest.raises(RuntimeError):
            func(*args, **kwargs)
        return
    try:
        expected = func(*args, **kwargs)
    except (RuntimeError, IndexError, ValueError):
        assert found is None
        return
    if found is None:
        return
    several = isinstance(expected, tuple)
    for a, b in zip(found if several else (found,), expected if several else (expected,), strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


aten = torch.ops.aten
X = (2, 6, 5, 4)
KNOWN: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.relu.default, (_meta(*X),)),
    (aten.gelu.default, (_meta(*X),)),
    (aten.clamp.default, (_meta(*X), 0.0, 6.0)),
    (aten.hardtanh.default, (_meta(*X), 0.0, 6.0)),
    (aten.leaky_relu.default, (_meta(*X), 0.1)),
    (aten.rsub.Scalar, (_meta(*X), 1)),
    (aten.add.Tensor, (_meta(*X), _meta(6, 1, 1))),
    (aten.mul.Tensor, (_meta(2, 6, 1, 1), _meta(*X))),
    (aten.mul.Tensor, (_meta(4, 1), _meta(1, 5))),
    (aten.div.Tensor, (_meta(*X), 2.0)),
    (aten.batch_norm.default, (_meta(*X), _meta(6), _meta(6), _meta(6), _meta(6), False, 0.1, 1e-5, False)),
    (aten.batch_norm.default, (_meta(1, 6, 20), _meta(6), None, None, None, True, 0.0, 1e-5, False)),
    (aten.layer_norm.default, (_meta(2, 5, 6), [6], _meta(6), _meta(6))),
    (aten.layer_norm.default, (_meta(2, 6, 5).transpose(1, 2), [6], _meta(6), None)),
    (aten.rms_norm.default, (_meta(2, 5, 6), [6], _meta(6))),
    (aten.rms_norm.default, (_meta(2, 6, 5).transpose(1, 2), [6])),
    (aten.native_group_norm.default, (_meta(*X), _meta(6), _meta(6), 2, 6, 20, 3, 1e-5)),
    (aten.linear.default, (_meta(2, 5, 6), _meta(3, 6), _meta(3))),
    (aten.linear.default, (_meta(2, 6), _meta(3, 6))),
    (aten.scaled_dot_product_attention.default, (_meta(2, 3, 5, 4), _meta(2, 3, 7, 4), _meta(2, 3, 7, 6))),
    (aten.mean.dim, (_meta(*X), [2, 3], True)),
    (aten.mean.dim, (_meta(*X), [-1], False)),
    (aten.cat.default, ([_meta(*X), _meta(2, 3, 5, 4)], 1)),
    (aten.cat.default, ([_meta(*X), _meta(2, 6, 5, 1)], -1)),
    (aten.roll.default, (_meta(*X), [1, -2], [1, 2])),
    (aten.upsample_nearest2d.default, (_meta(*X), [10, 8])),
    (aten.upsample_bilinear2d.default, (_meta(*X), [7, 3], False)),
    (aten.grid_sampler_2d.default, (_meta(*X), _meta(2, 3, 7, 2), 0, 0, False)),
    (aten.grid_sampler_2d.default, (_meta(2, 5, 4, 6).permute(0, 3, 1, 2), _meta(2, 3, 7, 2), 0, 0, False)),
]


@pytest.mark.parametrize("case", range(len(KNOWN)))
def test_the_answer_is_pytorchs_own(case):
    func, args = KNOWN[case]
    _agree(func, *args, known=True)


def _fake(argument: Any, mode: FakeTensorMode) -> Any:
    if isinstance(argument, list):
        return [_fake(item, mode) for item in argument]
    return FakeTensor(mode, argument, torch.device("cpu")) if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("case", range(len(KNOWN)))
def test_the_answer_for_fake_tensors_is_a_fake_one_as_pytorchs_own(case):
    func, args = KNOWN[case]
    mode = FakeTensorMode()
    args = [_fake(argument, mode) for argument in args]
    with mode:
        if func is aten.scaled_dot_product_attention.default:
            _agree(func, *args, known=False)
            return
        _agree(func, *args, known=True)
        found = _answer(func, *args)
    assert all(
        type(t) is FakeTensor and t.fake_mode is mode for t in (found if type(found) is tuple else [found])
    )


def test_an_attention_on_fake_tensors_has_the_layout_of_the_cpu():
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # known without data, but not on the meta device
            assert float(torch.tensor(1.0)) == 1
            x = x.transpose(1, 2)
            return F.scaled_dot_product_attention(x, x, x).transpose(1, 2).view(2, 5, -1)

    x = torch.randn(2, 5, 3, 4)
    assert Attends()(x).shape == (2, 5, 12)
    assert record(Network.of(Attends()), (x,), {}).tensor_mode == "fake"


def test_a_fake_tensor_beside_one_of_another_kind_or_with_a_number_is_left_to_pytorch():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = _fake(_meta(2, 3), mode)
    assert _answer(aten.mul.Tensor, fake, _meta(3)) is None
    assert _answer(aten.mul.Tensor, fake, torch.ones(3)) is None
    with mode:
        number = torch.tensor(2.0)
        assert _answer(aten.mul.Tensor, fake, number) is None
        assert _answer(aten.sqrt.default, number) is None


def test_numbers_that_python_made_are_computed_with_on_fake_tensors():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / float(torch.tensor(16.0).sqrt() * 2)

    found = record(Network.of(Root()), (torch.zeros(2, 4),), {})
    assert found.tensor_mode == "fake"
    assert found.calls[-1].arguments["other"] == 8.0


@pytest.mark.parametrize("case", range(len(KNOWN)))
@pytest.mark.parametrize("change", ["dtype", "device", "layout"])
def test_other_dtypes_devices_and_layouts_are_pytorchs_own_too(case, change):
    """One operand after the other is an integer, on the CPU, or channels last."""
    func, args = KNOWN[case]
    for i, arg in enumerate(args):
        if not isinstance(arg, Tensor):
            continue
        if change == "dtype":
            other = arg.to(torch.int64)
        elif change == "device":
            other = torch.zeros(arg.shape)
        elif arg.dim() == 4 and func is not aten.layer_norm.default:
            other = arg.to(memory_format=torch.channels_last)
        else:
            continue
        try:
            _agree(func, *args[:i], other, *args[i + 1 :])
        except NotImplementedError:
            # PyTorch has no kernel for the mixture: neither may there be an answer
            assert _answer(func, *args[:i], other, *args[i + 1 :]) is None


def test_a_recording_takes_the_layout_of_a_layer_norm_as_the_cpu_has_it():
    x = torch.randn(2, 6, 5).transpose(1, 2)
    out = _answer(aten.layer_norm.default, x.to("meta"), [6], _meta(6), _meta(6))
    assert out.stride() == F.layer_norm(x, (6,), torch.ones(6), torch.ones(6)).stride() == (30, 6, 1)


@pytest.mark.parametrize("seed", range(60))
def test_convolutions_of_every_kind(seed):
    generator = np.random.default_rng(seed)
    taps = int(generator.integers(1, 4))
    groups = int(generator.choice([1, 2, 4]))
    transposed = bool(generator.integers(2))
    incoming, outgoing = groups * int(generator.integers(1, 3)), groups * int(generator.integers(1, 3))
    # now and then one channel too many, which PyTorch refuses
    more = int(generator.integers(8) == 0)
    lengths, kernel = generator.integers(5, 9, taps).tolist(), generator.integers(1, 4, taps).tolist()
    x = _meta(2, incoming + more, *lengths)
    weight = (
        _meta(incoming, outgoing // groups, *kernel)
        if transposed
        else _meta(outgoing, incoming // groups, *kernel)
    )
    bias = _meta(outgoing) if generator.integers(2) else None
    stride = generator.integers(2, 4, taps).tolist()
    padding, dilation = generator.integers(0, 2, taps).tolist(), generator.integers(1, 3, taps).tolist()
    extra = generator.integers(0, 2, taps).tolist() if transposed else [0] * taps
    _agree(aten.convolution.default, x, weight, bias, stride, padding, dilation, transposed, extra, groups,
           known=not more)  # fmt: skip


@pytest.mark.parametrize("seed", range(80))
def test_recurrent_layers_of_every_kind(seed):
    generator = np.random.default_rng(seed)
    kind = ["lstm", "gru", "rnn_tanh", "rnn_relu"][int(generator.integers(4))]
    gates = {"lstm": 4, "gru": 3}.get(kind, 1)
    layers, two, first, biases = (int(n) for n in generator.integers(0, 2, 4))
    layers += 1
    steps, batch, incoming, cells = (int(n) for n in generator.integers(1, 6, 4))
    hidden = int(generator.integers(1, cells)) if kind == "lstm" and cells > 1 and seed % 3 == 0 else cells
    params = []
    for i in range(layers * (1 + two)):
        read = incoming if i < 1 + two else hidden * (1 + two)
        params += [_meta(gates * cells, read), _meta(gates * cells, hidden)]
        params += [_meta(gates * cells), _meta(gates * cells)] if biases else []
        params += [_meta(hidden, cells)] if hidden != cells else []
    states = [_meta(layers * (1 + two), batch, n) for n in (hidden, cells)]
    # now and then something that PyTorch refuses
    wrong = int(generator.integers(8)) if seed % 2 else 7
    if wrong == 0:
        params = params[:-1]
    elif wrong == 1:
        states[0] = _meta(layers * (1 + two), batch + 1, hidden)
    elif wrong == 2:
        params[0] = _meta(gates * cells, incoming + 1)
    x = _meta(batch, steps, incoming) if first else _meta(steps, batch, incoming)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if seed % 5 == 0 else x
    func = getattr(aten, kind).input
    hx = states if kind == "lstm" else states[0]
    _agree(func, x, hx, params, bool(biases), layers, 0.5, bool(seed % 4), bool(two), bool(first),
           known=wrong > 2)  # fmt: skip


@pytest.mark.parametrize("kind", ["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"])
def test_recurrent_cells(kind):
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(kind, 1)
    func = getattr(aten, kind).default
    for change in (0, 1):
        states = [_meta(3, 4 + change), _meta(3, 4)]
        for biases in ((), (_meta(gates * 4), _meta(gates * 4))):
            hx = states if gates == 4 else states[0]
            _agree(func, _meta(3, 5), hx, _meta(gates * 4, 5), _meta(gates * 4, 4), *biases, known=not change)
            _agree(func, _meta(3, 6), hx, _meta(gates * 4, 5), _meta(gates * 4, 4), *biases, known=False)


REFUSED: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (_meta(2, 3), _meta(2, 4))),
    (aten.add_.Tensor, (_meta(1, 3), _meta(2, 3))),
    (aten.batch_norm.default, (_meta(*X), _meta(5), None, _meta(6), _meta(6), False, 0.1, 1e-5, False)),
    (aten.layer_norm.default, (_meta(2, 5, 6), [5], None, None)),
    (aten.native_group_norm.default, (_meta(*X), _meta(6), _meta(6), 2, 6, 20, 4, 1e-5)),
    (aten.linear.default, (_meta(2, 5), _meta(3, 6), None)),
    (aten.linear.default, (_meta(2, 6), _meta(3, 6), _meta(4))),
    (aten.scaled_dot_product_attention.default, (_meta(2, 3, 5, 4), _meta(2, 3, 7, 5), _meta(2, 3, 7, 6))),
    (aten.mean.dim, (_meta(2, 3), [2])),
    (aten.cat.default, ([_meta(2, 3), _meta(3, 3)], 1)),
    (aten.roll.default, (_meta(2, 3), [1], [2])),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_does_not_fit_is_left_to_pytorch_or_refused_as_it_does(case):
    func, args = REFUSED[case]
    assert _answer(func, *args) in (None, _NO)
    with pytest.raises((RuntimeError, IndexError)):
        func(*args)


def test_heads_shared_by_several_queries_only_where_asked():
    q, k = _meta(1, 4, 5, 8), _meta(1, 2, 5, 8)
    attention: Callable[..., Any] = aten.scaled_dot_product_attention.default
    assert _answer(attention, q, k, k) is None
    assert _answer(attention, q, k, k, enable_gqa=True).shape == (1, 4, 5, 8)


def test_in_place_operations_give_what_they_were_given():
    x = _meta(2, 3)
    assert _answer(aten.hardtanh_.default, x, 0, 6) is x
    assert _answer(aten.mul_.Tensor, x, _meta(3)) is x


def test_a_network_that_does_not_fit_fails_as_it_does_without():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, torch.zeros(3), torch.ones(3))

    with pytest.raises(Exception, match="running_mean"):
        record(Network.of(Broken()), (torch.zeros(2, 4),), {})
