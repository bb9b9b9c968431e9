"""The VGG benchmark: the network's size, its training resumed, its weights found by the other benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.data.cifar10_data import Images
from benchmarks.accuracy.networks import vgg_cifar
from benchmarks.accuracy.studies import cifar10, peer, vgg
from slimfast.plans.costs import count_module

EXAMPLE = torch.zeros(1, 3, 32, 32)


def small() -> vgg_cifar.VGG:
    return vgg_cifar.VGG(((8, 8), (8,), (8,), (8,), (8,)))


def test_the_network_has_the_size_of_the_paper_at_this_resolution() -> None:
    # 3x3 convolutions: the pixels of each stage times 9 n_in n_out, and 512 x 10.
    pixels = [32 * 32, 16 * 16, 8 * 8, 4 * 4, 2 * 2]
    macs, params, n_in = 5120, 5130, 3
    for area, widths in zip(pixels, vgg_cifar.STAGES, strict=True):
        for width in widths:
            macs, params, n_in = macs + area * 9 * n_in * width, params + 9 * n_in * width + 2 * width, width
    cost = count_module(vgg_cifar.vgg16_bn(), EXAMPLE)
    assert (cost.macs, cost.params) == (macs, params)


def test_a_teacher_without_an_opinion() -> None:
    assert torch.equal(vgg.Unknowing(3)(torch.randn(2, 3, 4, 4)), torch.zeros(2, 3))


def test_training_is_resumed_and_its_weights_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (60,), generator=generator))
    monkeypatch.setattr(vgg, "load_split", lambda split, folder: images)
    monkeypatch.setattr(vgg, "vgg16_bn", small)
    monkeypatch.setattr(vgg_cifar, "vgg16_bn", small)
    settings = replace(vgg.SHORT, train_images=40, validation_images=10, test_images=10, batch=8)
    weights = tmp_path / "data" / "weights"
    found = vgg.run(settings, work=tmp_path / "work", weights=weights, progress=False)
    assert 0 <= found.test <= 1
    network = cifar10.load_network("vgg16_bn", tmp_path / "data")
    before = small().state_dict()
    assert not torch.equal(network.state_dict()["features.0.weight"], before["features.0.weight"])
    # The same command again trains nothing.
    assert vgg.run(settings, work=tmp_path / "work", weights=weights, progress=False) == found


def test_torch_pruning_takes_all_convolutions_of_a_plain_network() -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    network = small().eval()
    thin = peer.torch_pruned(network, EXAMPLE, 0.5)
    macs = count_module(network, EXAMPLE).macs
    assert 0.2 * macs < count_module(thin, EXAMPLE).macs <= 0.5 * macs
    assert network.features[0].out_channels == 8
    assert all(parameter.requires_grad for parameter in thin.parameters())


def test_torch_pruning_may_be_kept_from_emptying_layers() -> None:
    pytest.importorskip("torch_pruning")

    def least(most: float) -> int:
        torch.manual_seed(0)
        thin = peer.torch_pruned(small().eval(), EXAMPLE, 0.4, most=most)
        return min(m.out_channels for m in thin.modules() if isinstance(m, torch.nn.Conv2d))

    assert least(0.5) > least(1.0)
