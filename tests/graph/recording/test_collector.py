"""The garbage collector is paused while a network is traced, and never stays so."""

import gc
import threading

import pytest
import torch
from torch import nn

from slimfast import UnsupportedGraph, trace_channels
from slimfast.graph.recording.collector import collector_paused


class Watching(nn.Module):
    """Notes whether the collector is on while its forward runs."""

    def __init__(self, error=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seen = []
        self.error = error

    def __deepcopy__(self, memo):
        copied = Watching(self.error)
        copied.linear, copied.seen = self.linear, self.seen
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


def test_it_is_off_while_a_network_is_traced_and_on_again_after():
    model = Watching().to("meta")
    trace_channels(model, torch.randn(1, 4))
    assert model.seen
    assert not any(model.seen)
    assert gc.isenabled()


def test_it_is_on_again_after_an_error():
    with pytest.raises(UnsupportedGraph, match="no such thing"):
        trace_channels(Watching(ValueError("no such thing")), torch.randn(1, 4))
    assert gc.isenabled()


def test_who_has_it_off_keeps_it_off(disabled):
    with collector_paused(), collector_paused():
        pass
    assert not gc.isenabled()


def test_it_stays_off_until_the_last_of_several_pauses_ends():
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
