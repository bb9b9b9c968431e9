"""Copies of modules: what copy.deepcopy gives, with other tensors in them and no garbage collected."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import Tensor, nn

import slimfast
from slimfast import UnsupportedGraph, trace_channels
from slimfast.errors import SlimfastError
from slimfast.graph.recording.module_copies import (
    aliases,
    collector_paused,
    copy_with,
    deep_copy,
    named_tensors,
)
from slimfast.graph.recording.network import Network


class Odd(nn.Module):
    """Attributes that refer to each other, to modules, and to tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.second.weight = nn.Parameter(self.second.weight.detach().clone(), requires_grad=False)
        self.listed = [self.first, (self.second, "name")]
        self.cache: dict[str, object] = {}
        self.first.cache = self.cache
        self.method = self.shared
        self.loose = torch.ones(2)
        self.pair = (self.loose, 1)
        self.sizes = {"heads": [1, 2]}
        self.recurrent = nn.LSTM(2, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.register_buffer("steps", torch.zeros(1), persistent=False)
        self.register_forward_hook(lambda *_: None)

    def shared(self) -> Tensor:
        return self.first.weight


class Own(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict) -> Own:
        made = Own(self.in_features, self.out_features)
        made.copied = True
        return made


def test_a_copy_is_what_deepcopy_gives():
    odd = Odd()
    made, expected = deep_copy(Network.of(odd), {}), copy.deepcopy(odd)
    assert isinstance(made, Odd)
    assert {n: (t.shape, t.requires_grad) for n, t in named_tensors(made).items()} == {
        n: (t.shape, t.requires_grad) for n, t in named_tensors(expected).items()
    }
    for name, tensor in named_tensors(odd).items():
        assert torch.equal(named_tensors(made)[name], tensor)
        assert named_tensors(made)[name] is not tensor
    assert made.state_dict().keys() == expected.state_dict().keys()
    assert len(made._forward_hooks) == 1
    assert made._non_persistent_buffers_set == {"steps"}
    assert made.recurrent(torch.zeros(1, 2))[0].shape == (1, 3)
    assert made.normed(torch.zeros(1, 2)).shape == (1, 2)


def test_what_refers_to_a_part_refers_to_the_copys():
    odd = Odd()
    made = deep_copy(Network.of(odd), {})
    assert made.listed[0] is made.first
    assert made.listed[1][0] is made.second
    assert made.cache is made.first.cache
    assert made.cache is not odd.cache
    assert made.method() is made.first.weight
    assert made.pair[0] is made.loose
    assert made.loose is not odd.loose
    made.sizes["heads"].append(3)
    made.register_buffer("more", torch.zeros(1))
    assert odd.sizes == {"heads": [1, 2]}
    assert "more" not in odd._buffers


def test_a_class_that_says_how_it_is_copied_is_asked():
    made = deep_copy(Network.of(nn.Sequential(Own(2, 3))), {})
    assert made[0].copied


def test_shared_tensors_are_the_originals_and_replaced_ones_the_new():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    weight = torch.zeros(2, 3)
    made = copy_with(model, {"0.weight": weight}, share=True)
    assert made[0].weight.shape == (2, 3)
    assert made[0].weight.data_ptr() == weight.data_ptr()
    assert made[1].weight is model[1].weight
    assert copy_with(model, {})[1].weight is not model[1].weight


def test_names_are_those_of_pytorch():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.append(model[1])
    model[2].weight = model[0].weight
    first = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(named_tensors(model)) == list(first)
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    assert aliases(model).keys() == every.keys() - first.keys()
    assert aliases(model)["2.weight"] == "0.weight"
    assert aliases(model)["3.running_var"] == "1.running_var"


def test_a_module_that_cannot_be_copied_is_named():
    model = nn.Linear(2, 2)
    model.handle = (i for i in range(3))
    with pytest.raises(SlimfastError, match="Linear cannot be copied: cannot pickle 'generator' object"):
        deep_copy(Network.of(model), {})


class Watching(nn.Module):
    """Notes whether the collector is on while its forward runs."""

    def __init__(self, error=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen = []
        self.error = error

    def __deepcopy__(self, memo):
        copied = Watching(self.error)
        copied.linear, copied.seen = copy.deepcopy(self.linear, memo), self.seen
        return copied

    def forward(self, x):
        self.seen.append(gc.isenabled())
        if self.error is not None:
            raise self.error
        return self.linear(x)


@pytest.fixture
def disabled():
    gc.disable()
    yield
    gc.enable()


def test_the_collector_is_off_while_a_network_is_traced_and_on_again_after():
    model = Watching().to("meta")
    trace_channels(model, torch.randn(1, 4))
    assert model.seen
    assert not any(model.seen)
    assert gc.isenabled()


def test_the_collector_is_on_again_after_an_error():
    with pytest.raises(UnsupportedGraph, match="no such thing"):
        trace_channels(Watching(ValueError("no such thing")), torch.randn(1, 4))
    assert gc.isenabled()


def test_who_has_the_collector_off_keeps_it_off(disabled):
    with collector_paused(), collector_paused():
        pass
    assert not gc.isenabled()


def test_the_collector_stays_off_until_the_last_of_several_pauses_ends():
    """And is on again then, whichever of them began first."""
    began, other_ended = threading.Event(), threading.Event()
    seen = []

    def pause():
        with collector_paused():
            began.set()
            other_ended.wait(5)
            seen.append(gc.isenabled())

    thread = threading.Thread(target=pause)
    with collector_paused():
        thread.start()
        began.wait(5)
    other_ended.set()
    thread.join()
    assert seen == [False]
    assert gc.isenabled()


class _KeepsHandles(nn.Module):
    """Keeps the handles of hooks as Hugging Face's models do for gradient checkpointing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)
        self.handle = self.a.register_forward_hook(_doubles)
        self.more = {
            "all": [self.b.register_forward_pre_hook(_nothing), self.a.register_forward_hook(_nothing)]
        }
        self.with_kwargs = self.b.register_forward_hook(_nothing_with_kwargs, with_kwargs=True)
        self.gone = self.b.register_forward_hook(_doubles)
        self.gone.remove()

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def _doubles(module, args, output):
    return output * 2


def _nothing(module, args, output=None):
    return None


def _nothing_with_kwargs(module, args, kwargs, output):
    return None


def test_handles_of_hooks_remove_those_of_the_copy():
    model, x = _KeepsHandles().eval(), torch.randn(2, 8)
    expected = model(x)
    copied = copy_with(copy_with(copy_with(model, {}), {}), {})
    assert torch.equal(copied(x), expected)
    copied.handle.remove()
    for handle in (*copied.more["all"], copied.with_kwargs, copied.gone):
        handle.remove()
    hooks = [copied.a._forward_hooks, copied.b._forward_hooks, copied.b._forward_pre_hooks]
    assert not any([*hooks, copied.b._forward_hooks_with_kwargs])
    assert not torch.equal(copied(x), expected)
    assert torch.equal(model(x), expected)
    assert len(model.a._forward_hooks) == 2


def test_a_network_that_keeps_handles_is_cut():
    model, x = _KeepsHandles().eval(), torch.randn(2, 8)
    thin = slimfast.slim(model, x, params=0.6)
    assert thin.a.out_features < 32
    thin.handle.remove()
    assert len(thin.a._forward_hooks) == 1
    assert len(model.a._forward_hooks) == 2
