"""The check of a thin network finds whatever is wrong with it, says where, and leaves everything alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from support.graph_cases import Net
from support.pruning_cases import CASES, build, plan_of, random_keeps
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.pruning.closeness import difference
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.verification import verify


def thin_case(name: str, seed: int = 0):
    model, x = build(name)
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, seed)
    return model, prune_channels(model, plan_of(graph, keeps), verify=False), graph, keeps, x


@pytest.mark.parametrize("name", CASES)
def test_agrees_to_rounding_in_float64(name):
    model, thin, graph, keeps, x = thin_case(name)
    found = verify(model, thin, graph, keeps, x)
    assert found.dtype == "float64"
    assert found.max_error < 1e-14 < found.tolerance < 1e-9
    assert set(found.compared) | set(found.inexact) == {group.name for group in graph}
    assert not set(found.compared) & set(found.inexact)


def test_the_masked_output_is_really_another():
    """What is compared depends on the removed units: with other units masked the outputs differ."""
    model, thin, graph, keeps, x = thin_case("conv")
    other = dict(keeps)
    name = "branch"
    other[name] = np.setdiff1d(np.arange(graph[name].n), keeps[name])[: len(keeps[name])]
    wrong = prune_channels(model, plan_of(graph, other), verify=False)
    with torch.no_grad():
        assert (wrong(x) - thin(x)).abs().max() > 1e-3


def test_groups_whose_removal_is_not_masking_are_left_out_and_told():
    model, thin, graph, keeps, x = thin_case("transformer")
    found = verify(model, thin, graph, keeps, x)
    assert list(found.inexact) == ["embed[residual]"]
    assert "layer norm" in found.inexact["embed[residual]"]
    alone = {"embed[residual]": keeps["embed[residual]"]}
    thin = prune_channels(model, plan_of(graph, alone), verify=False)
    assert verify(model, thin, graph, alone, x).compared == ()


def test_a_wrong_weight_is_named():
    model, thin, graph, keeps, x = thin_case("conv")
    thin.project.weight.data[0, 0] += 1e-6
    with pytest.raises(SlimfastError, match=r"verify: project\.weight: expected the kept slice"):
        verify(model, thin, graph, keeps, x)


def test_a_tensor_of_another_shape_or_dtype_is_named():
    model, thin, graph, keeps, x = thin_case("conv")
    thin.norm.half()
    with pytest.raises(SlimfastError, match=r"norm\.weight: expected torch\.float32 .*got torch\.float16"):
        verify(model, thin, graph, keeps, x)


def test_the_first_module_that_disagrees_is_named():
    model, thin, graph, keeps, x = thin_case("conv")
    thin.norm.eps = 0.1
    with pytest.raises(SlimfastError, match=r"the first output to disagree is norm's"):
        verify(model, thin, graph, keeps, x)


def test_a_disagreement_inside_the_model_itself_is_told_too():
    model, thin, graph, keeps, x = thin_case("option-a")
    thin.pads = [0, 0, 0, 0, thin.pads[5], thin.pads[4]]
    assert thin.pads[4] != thin.pads[5]
    with pytest.raises(SlimfastError, match=r"verify: .*first output to disagree is head's"):
        verify(model, thin, graph, keeps, x)


def test_a_thin_network_that_does_not_run_is_told():
    model, thin, graph, keeps, x = thin_case("option-a")
    thin.pads = [0, 0, 0, 0, 7, 7]
    with pytest.raises(SlimfastError, match="the thin network's forward fails"):
        verify(model, thin, graph, keeps, x)


def test_an_example_of_the_wrong_shape_is_told():
    model, thin, graph, keeps, x = thin_case("conv")
    with pytest.raises(SlimfastError, match="verify: the original's forward fails"):
        verify(model, thin, graph, keeps, x[:, :2])


class Casts(nn.Module):
    """Code that insists on float32 in the middle and makes tensors of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.to(dtype)

    def forward(self, x):
        self.seen += 1
        return self.last((self.first(x).to(torch.float32).relu() + torch.tensor(0.5)).to(x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_casts_and_half_precision_are_compared_in_float64(dtype):
    model, x = Casts(dtype).eval(), torch.randn(3, 4).to(dtype)
    graph = trace_channels(model, x)
    keeps = {"first": np.array([1, 4])}
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    found = verify(model, thin, graph, keeps, x)
    assert (found.dtype, found.compared) == ("float64", ("first",))
    assert float(model.seen) == float(thin.seen) == 0.0


class OnlyFloat32(nn.Module):
    """Code that refuses float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        if x.dtype == torch.float64:
            raise TypeError("float32 only")
        return self.last(self.first(x).relu())


def test_a_model_that_refuses_float64_is_compared_in_float32():
    model, x = OnlyFloat32().eval(), torch.randn(3, 4)
    graph = trace_channels(model, x)
    keeps = {"first": np.array([0, 2, 5])}
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    found = verify(model, thin, graph, keeps, x)
    assert found.dtype == "float32"
    assert "the original's forward fails in float64, both ran in float32: float32 only" in found.notes
    assert found.max_error <= found.tolerance < 1e-3


def test_modes_weights_and_random_state_stay():
    model, thin, graph, keeps, _ = thin_case("conv")
    model.train()
    thin.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    verify(model, thin, graph, keeps)
    assert all(module.training for module in (model, thin, model.norm))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_prune_channels_verifies_unless_told_otherwise(monkeypatch):
    model, x = build("conv")
    graph = trace_channels(model, x)
    calls = []
    monkeypatch.setattr("slimfast.pruning.prune.verify_and_patch", lambda *args: (calls.append(args), ()))
    plan = plan_of(graph, random_keeps(graph, 0))
    prune_channels(model, plan, verify=False)
    assert calls == []
    prune_channels(model, plan)
    assert len(calls) == 1


def _checked(model, x):
    model.eval()
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, 0)
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    return verify(model, thin, graph, keeps, x), thin


def test_a_weight_divided_by_its_norm_is_masked_without_dividing_by_zero():
    """The masked weight's norm is 0 as well."""
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), nn.Conv1d(8, 2, 1))
    found, _ = _checked(model, torch.randn(2, 3, 7))
    assert len(found.compared) == 1
    assert found.max_error < 1e-14


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_hook_makes_before_each_forward_is_copied():
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), nn.Conv1d(8, 2, 1))
    x = torch.randn(2, 3, 7)
    found, thin = _checked(model, x)
    assert len(found.compared) == 1
    assert thin(x).shape == (2, 2, 5)
    assert thin[0].weight.shape == thin[0].weight_v.shape != model[0].weight_v.shape


def test_complex_outputs_are_compared_as_their_two_parts():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, x):
            return torch.fft.fft(self.b(self.a(x).relu()), dim=-1)

    found, thin = _checked(Spectrum(), torch.randn(2, 3))
    assert found.compared == ("a",)
    assert 0.0 <= found.max_error < 1e-14
    assert thin(torch.randn(1, 3)).dtype == torch.complex64
    wide = torch.tensor([1.0 + 1.0j, 2.0])
    assert difference(wide, wide + 2.0**-10 * 1j) == 2.0**-11


@pytest.mark.parametrize("asks", [False, True])
def test_a_scale_that_python_makes_a_tensor_of_makes_the_width_inexact(asks):
    """Recorded without data and, where the forward asks for a value, on fake tensors."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.c = 2, nn.Linear(12, 3)
            self.q, self.k, self.v = (nn.Linear(5, 12) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            if asks and torch.tensor(1).item() != 1:
                return x
            scale = torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float32))
            weights = (q @ k.transpose(-1, -2) / scale).softmax(-1)
            return self.c((weights @ v).transpose(1, 2).flatten(2))

    model = Scaled().eval()
    x = torch.randn(2, 4, 5)
    graph = trace_channels(model, x)
    told = {group.name: group.inexact or "" for group in graph}
    assert "its width changes a factor: 6 to " in told["q[head_dim]"]
    assert told["q[head]"] == ""
    found, _ = _checked(model, x)
    assert "q[head]" in found.compared
    assert "q[head_dim]" in found.inexact


def test_two_threads_leave_the_random_numbers_as_they_were():
    """The second verification begins inside the first and ends after it, unless it waits for its turn."""
    began, ended = threading.Event(), threading.Event()

    def case(wait):
        def forward(m, x):
            if verifying.is_set():
                wait()
            return m.b(m.a(x) * torch.rand(1, device=x.device))

        model, x = Net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), torch.randn(2, 3)
        graph = trace_channels(model, x)
        keeps = {"a": np.array([0, 2])}
        return model, prune_channels(model, plan_of(graph, keeps), verify=False), graph, keeps, x

    def outer():
        if not second.ident:
            second.start()
        began.wait(0.5)

    def inner():
        began.set()
        ended.wait(5)

    verifying = threading.Event()
    first, other = case(outer), case(inner)
    found = []
    second = threading.Thread(target=lambda: found.append(verify(*other)))
    verifying.set()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found.append(verify(*first))
    ended.set()
    second.join()
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.compared for one in found] == [("a",), ("a",)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_that_writes_into_its_arguments_is_compared_and_leaves_them_alone(dtype):
    """Without a copy the thin network would be run on what the masked one made of the example."""
    model = Net(lambda m, x: m.b(m.a(x.mul_(2))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)).to(dtype)
    x = torch.ones(2, 3, dtype=dtype)
    graph = trace_channels(model, x)
    keeps = {"a": np.array([0, 2])}
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    assert verify(model, thin, graph, keeps, x).compared == ("a",)
    assert torch.equal(x, torch.ones(2, 3, dtype=dtype))
