"""A part of a thin network, and what holds one, know what was kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import slimfast


class Stack(nn.Module):
    """Two blocks and a head, of which the head shares its weight with the first block."""

    def __init__(self):
        super().__init__()
        self.width = 16
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.head(self.body(x).reshape(len(x), self.width, -1, x.shape[-1]).relu())


class Holder(nn.Module):
    """A wrapper, as DDP and Lightning have one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


X = torch.randn(1, 3, 8, 8)


def thin_holder():
    torch.manual_seed(0)
    return slimfast.slim(Holder(Stack()).eval(), X, params=0.5)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("copies", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_part_is_saved_and_loaded(tmp_path, copies):
    part = copies(thin_holder().net)
    assert part.width < 16
    described = slimfast.manifest(part)
    assert "body.0.weight" in described.keeps
    assert all(name in dict(part.named_parameters()) for name in described.keeps)
    slimfast.save(part, tmp_path / "part.safetensors")
    again = slimfast.load(tmp_path / "part.safetensors", Stack())
    same(part.state_dict(), again.state_dict())
    assert again.width == part.width
    assert torch.equal(part(X), again.eval()(X))


def test_a_part_of_a_part_is_saved_and_loaded(tmp_path):
    body = thin_holder().net.body
    slimfast.save(body, tmp_path / "body.safetensors")
    same(body.state_dict(), slimfast.load(tmp_path / "body.safetensors", Stack().body).state_dict())


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel, lambda net: Holder(Holder(net)), nn.Sequential])
def test_what_holds_a_thin_network_is_saved_and_loaded(tmp_path, wrap):
    thin = slimfast.slim(Stack().eval(), X, params=0.5)
    slimfast.save(wrap(thin), tmp_path / "held.safetensors")
    again = slimfast.load(tmp_path / "held.safetensors", wrap(Stack()))
    same(wrap(thin).state_dict(), again.state_dict())


def test_a_part_pruned_again_is_saved_and_loaded(tmp_path):
    part = thin_holder().net
    thinner = slimfast.slim(part, X, params=0.6)
    slimfast.save(thinner, tmp_path / "thinner.safetensors")
    same(thinner.state_dict(), slimfast.load(tmp_path / "thinner.safetensors", Stack()).state_dict())


def test_a_weight_that_is_shared_across_parts_is_known_in_both(tmp_path):
    def build():
        net = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 20))
        net[3].weight = net[0].weight
        return net

    thin = slimfast.slim(build().eval(), torch.randint(0, 20, (1, 6)), params=0.6)
    last = thin[3]
    assert slimfast.manifest(last).shapes_before["weight"] == (20, 16)
    slimfast.save(last, tmp_path / "last.safetensors")
    same(last.state_dict(), slimfast.load(tmp_path / "last.safetensors", nn.Linear(16, 20)).state_dict())


def test_a_network_that_was_never_pruned_kept_everything():
    assert not slimfast.manifest(Holder(Stack())).keeps
