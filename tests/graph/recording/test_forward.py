"""Recording: what is written down, where it runs, what it leaves behind, how it fails."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from support.graph_cases import Net
from torch import nn

from slimfast.errors import UnsupportedGraph
from slimfast.graph import trace_channels
from slimfast.graph.recording.forward import dataless_copy, record, record_at
from slimfast.graph.recording.network import Network


def _record(model, *args, **kwargs):
    return record(Network.of(model), args, kwargs)


def test_operations_have_their_module_their_names_and_their_shapes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()))
    recording = _record(model, torch.zeros(2, 3, 8, 8))
    assert [(c.op, c.module) for c in recording.calls] == [("aten.convolution", "0"), ("aten.relu", "1.0")]
    conv = recording.calls[0]
    assert conv.outputs[0].shape == (2, 4, 6, 6)
    assert conv.arguments["groups"] == 1
    assert recording.names[conv.arguments["weight"].value] == "0.weight"
    assert recording.tensor_mode == "meta"


class _Kept(nn.Module):
    """Writes to a buffer, caches a tensor and has a dropout: things a forward must not leave behind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(1))
        self.cache = None

    def forward(self, x):
        self.calls += 1
        self.cache = x
        return self.drop(self.norm(self.linear(x)))


def test_the_model_is_left_as_it_was():
    model = _Kept().train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    trace_channels(model, torch.zeros(2, 3))
    assert model.cache is None
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


class _Asks(nn.Module):
    """Asks for a value that fake tensors know (a constant) or do not know (the input)."""

    def __init__(self, what):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.what = what

    def forward(self, x):
        value = torch.tensor(2.0).item() if self.what == "constant" else (x.sum() > -1e9).item()
        return self.linear(x) if value else x


@pytest.mark.parametrize(
    ("what", "mode", "decided"), [("nothing", "meta", 0), ("constant", "fake", 0), ("input", "fake", 1)]
)
def test_values_are_asked_for_no_further_than_needed(what, mode, decided):
    model = nn.Linear(3, 4) if what == "nothing" else _Asks(what)
    recording = _record(model, torch.zeros(2, 3))
    assert recording.tensor_mode == mode
    assert len(recording.decisions) == decided
    assert [c.op for c in recording.calls if c.op == "aten.linear"] == ["aten.linear"]


@pytest.mark.parametrize("place", ["meta", "fake", "real"])
def test_a_forward_that_writes_into_its_arguments_leaves_the_example_alone(place):
    def forward(m, x, scale):
        return m.a(x.mul_(scale["by"].add_(1)))

    x, scale = torch.ones(2, 3), {"by": torch.ones(())}
    recording = record_at(Network.of(Net(forward, a=nn.Linear(3, 4))), (x,), {"scale": scale}, place)
    assert [c.op for c in recording.calls] == ["aten.add_", "aten.mul_", "aten.linear"]
    assert torch.equal(x, torch.ones(2, 3))
    assert scale["by"] == 1


def test_attention_is_one_operation():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(2, 5, 8)
    recording = _record(model, x, x, x, need_weights=False)
    assert [c.op for c in recording.calls].count("aten.scaled_dot_product_attention") == 1
    assert "aten.bmm" not in {c.op for c in recording.calls}


def test_an_encoder_layer_is_recorded_although_a_fused_one_exists():
    enabled = torch.backends.mha.get_fastpath_enabled()
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    recording = _record(model, torch.zeros(2, 5, 8))
    assert [c.op for c in recording.calls].count("aten.linear") == 4
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("place", ["fake", "real"])
def test_two_threads_leave_the_switches_of_the_process_as_they_were(place):
    """The second recording begins inside the first and ends after it, unless it waits for its turn."""
    began, ended = threading.Event(), threading.Event()
    log = logging.getLogger("torch._subclasses.fake_tensor")

    def outer(m, x):
        second.start()
        began.wait(0.5)
        return m.a(x)

    def inner(m, x):
        began.set()
        ended.wait(5)
        return m.a(x)

    def record_second():
        recordings.append(
            record_at(Network.of(Net(inner, a=nn.Linear(3, 4))), (torch.zeros(2, 3),), {}, place)
        )

    recordings = []
    second = threading.Thread(target=record_second)
    before = torch.backends.mha.get_fastpath_enabled(), log.disabled
    recordings.append(record_at(Network.of(Net(outer, a=nn.Linear(3, 4))), (torch.zeros(2, 3),), {}, place))
    ended.set()
    second.join()
    assert (torch.backends.mha.get_fastpath_enabled(), log.disabled) == before == (True, False)
    assert [[c.op for c in recording.calls] for recording in recordings] == [["aten.linear"]] * 2


def test_tied_tensors_are_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    dataless = dataless_copy(Network.of(model))
    assert dataless[0].weight is dataless[1].weight
    assert Network.of(model).tied == {"1.weight": "0.weight"}
    assert trace_channels(model, torch.zeros(2, 4)).tied == {"1.weight": "0.weight"}


def test_a_wrong_example_names_the_module_and_the_shapes():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3)))
    message = r"Sequential: forward failed in 1\.0 called with shapes \[2, 5, 8, 8\]: .*"
    with pytest.raises(UnsupportedGraph, match=message) as caught:
        trace_channels(model, torch.zeros(2, 5, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_forward_that_raises_is_named():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            raise RuntimeError("no such luck\nsecond line")

    message = r"Broken: forward failed in the model itself called with shapes \[1, 2\]: no such luck$"
    with pytest.raises(UnsupportedGraph, match=message):
        trace_channels(Broken(), torch.zeros(1, 2))


class _Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such luck")


def test_operations_after_an_error_that_was_caught_have_their_own_module():
    def forward(m, x):
        try:
            x = m.broken(x)
        except RuntimeError:
            x = x.relu()
        return m.a(x.neg())

    def outer(m, x):
        return m.inner(x).abs()

    inner = Net(forward, broken=nn.Sequential(_Breaks()), a=nn.Linear(3, 4))
    recording = _record(Net(outer, inner=inner), torch.zeros(2, 3))
    assert [(c.op.removeprefix("aten."), c.module) for c in recording.calls] == [
        ("relu", "inner"),
        ("neg", "inner"),
        ("linear", "inner.a"),
        ("abs", ""),
    ]


@pytest.mark.parametrize(
    ("handler", "where"),
    [
        (lambda m, x, error: m.a(x), r"a called with shapes \[2, 5\]: .*"),
        (lambda m, x, error: x.view(3), r"the model itself called with shapes \[2, 5\]: .*"),
    ],
)
def test_of_two_errors_the_one_that_was_not_caught_is_named(handler, where):
    def forward(m, x):
        try:
            return m.broken(x[0])
        except RuntimeError as error:
            return handler(m, x, error)

    net = Net(forward, broken=_Breaks(), a=nn.Linear(3, 4))
    with pytest.raises(UnsupportedGraph, match=f"Net: forward failed in {where}"):
        trace_channels(net, torch.zeros(2, 5))


def test_a_lazy_module_must_have_run_before():
    with pytest.raises(UnsupportedGraph, match="a lazy parameter has no shape yet"):
        trace_channels(nn.LazyLinear(3), torch.zeros(2, 4))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"^expected an nn.Module, got function$"):
        trace_channels(lambda x: x, torch.zeros(1))


def test_a_weight_made_of_two_parameters_cuts_both():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    graph = trace_channels(model, torch.zeros(1, 3))
    names = {member.tensor for group in graph for member in group.members}
    assert "0.parametrizations.weight.original0" in names
    assert "0.parametrizations.weight.original1" in names


def test_a_recording_stops_at_the_operation_asked_for():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            try:
                x = self.linear(x.clone()).relu()
            except Exception:
                x = x - 1
            return x + 1

    for most, expected in ((1, ["clone", "linear"]), (2, ["clone", "linear", "relu"]), (None, None)):
        calls = record_at(Network.of(Careless()), (torch.zeros(2, 3),), {}, "meta", max_operations=most).calls
        assert [c.op for c in calls] == [
            f"aten.{op}" for op in expected or ("clone", "linear", "relu", "add")
        ]


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_is_recorded_alike_with_and_without_a_shortcut(layer, groups):
    """Of as many channels in as out, where a transposed one would give the same shapes."""
    model = layer(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, *[5] * (model.weight.dim() - 2))
    short, full = (record_at(Network.of(model), (x,), {}, place).calls for place in ("meta", "fake"))
    assert [call.op for call in short] == [call.op for call in full] == ["aten.convolution"]
    assert short[0].outputs[0].shape == full[0].outputs[0].shape
    assert short[0].arguments.keys() == full[0].arguments.keys()
    for name in ("groups", "transposed"):
        assert short[0].arguments[name] == full[0].arguments[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_torchscript_is_refused_by_the_name_of_its_module(inside):
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    traced = torch.jit.trace(layers, torch.zeros(2, 4))
    model, name = (nn.Sequential(nn.Linear(4, 4), traced), "1") if inside else (traced, "the model itself")
    with pytest.raises(UnsupportedGraph, match=f"^{name} is TorchScript, which cannot be cut"):
        trace_channels(model, torch.zeros(2, 4))
