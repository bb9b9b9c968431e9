"""What a network does in training mode alone: outputs stay, branches follow, what breaks is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph.recording.network import Network
from slimfast.pruning.training_forward import compare_training


class AuxiliaryHead(nn.Module):
    """A second classifier, computed always and returned in training only."""

    def __init__(self, holder: type = tuple) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.aux, self.main = nn.Linear(16, 10), nn.Linear(24, 10)
        self.drop, self.holder = nn.Dropout(0.5), holder

    def forward(self, x: Tensor) -> object:
        x = functional.relu(self.one(x))
        aux = self.aux(self.drop(x.mean((2, 3))))
        main = self.main(self.drop(functional.relu(self.two(x)).mean((2, 3))))
        return self.holder([main, aux]) if self.training else main


@pytest.mark.parametrize("holder", [tuple, list, lambda outputs: {"main": outputs[0], "aux": outputs[1]}])
def test_what_is_returned_in_training_only_keeps_its_classes(holder: type) -> None:
    torch.manual_seed(0)
    model, x = AuxiliaryHead(holder).eval(), torch.randn(2, 3, 12, 12)
    thin = slimfast.slim(model, x, explained_variance=0.7).train()
    outputs = thin(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    assert [tuple(output.shape) for output in outputs] == [(2, 10), (2, 10)]
    assert len(thin.one.weight) < 16
    sum(output.sum() for output in outputs).backward()


class Decoder(nn.Module):
    """Decides by its own ``training`` flag which of the heads it is given are used."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers))

    def forward(self, x: Tensor, heads: nn.ModuleList) -> Tensor:
        out = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.training or i == len(self.layers) - 1:
                out.append(heads[i](x))
        return torch.stack(out)


class Heads(nn.Module):
    def __init__(self, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.stem, self.decoder = nn.Linear(8, width), Decoder(width, layers)
        self.heads = nn.ModuleList(nn.Linear(width, 4) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.stem(x), self.heads)


def test_heads_that_another_module_uses_in_training_follow_what_they_read() -> None:
    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(2, 8)
    thin = slimfast.slim(model, x, params=0.6)
    for head, layer in zip(thin.heads, thin.decoder.layers, strict=True):
        assert head.in_features == layer[0].out_features
        assert head.out_features == 4
    assert thin.decoder.layers[0][0].out_features < 16
    assert thin.train()(x).shape == (3, 2, 4)


class TrainingWidth(nn.Module):
    """Reads a width in training mode only, from where nothing is looked for."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self._hidden = {"width": hidden}
        self.a, self.b = nn.Linear(8, hidden), nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.a(x))
        if self.training:
            h = h + 0.1 * torch.randn(len(x), self._hidden["width"], device=x.device)
        return self.b(h)


def test_a_training_forward_that_the_cut_breaks_is_refused() -> None:
    torch.manual_seed(0)
    model, x = TrainingWidth().eval(), torch.randn(4, 8)
    message = (
        r"^verify: in training mode, in which the original runs, the thin network's forward failed in .*"
    )
    with pytest.raises(SlimfastError, match=message) as caught:
        slimfast.slim(model, x, params=0.5)
    assert "\n" not in str(caught.value)
    assert "exclude=" in str(caught.value)


class Returns(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> object:
        h = self.a(x)
        return (self.b(h), h) if self.training else self.b(h)


def test_an_output_of_another_shape_is_refused() -> None:
    inputs = ((torch.randn(2, 8),), {})
    with pytest.raises(SlimfastError, match=r"expected outputs of shapes .*\(2, 6\)\], got .*\(2, 3\)\]"):
        compare_training(Network.of(Returns(6)), Network.of(Returns(3)), inputs)


class NeedsTargets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        out = self.b(functional.relu(self.a(x)))
        if not self.training:
            return out
        if targets is None:
            raise ValueError("targets are needed in training")
        return functional.cross_entropy(out, targets)


def test_a_training_forward_that_cannot_run_is_said_not_to_be_compared() -> None:
    torch.manual_seed(0)
    model, x = NeedsTargets().eval(), torch.randn(4, 8)
    graph = slimfast.trace_channels(model, x)
    (group,) = graph
    keeps = {group.name: torch.arange(5).numpy()}
    with pytest.warns(UserWarning, match="targets are needed in training.*also="):
        plan = slimfast.plan(model, x, params=0.5)
    thin = slimfast.prune_channels(model, plan)
    assert thin.a.out_features < 24
    from slimfast.graph.cutting.cut import Cut

    cut = Cut(graph, keeps)
    found = slimfast.verify(model, cut.thin_copy(Network.of(model)), graph, keeps, x)
    assert found.training is not None
    assert "targets are needed in training" in found.training
    assert not model.training


def test_the_modes_and_statistics_of_the_networks_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    thin = slimfast.slim(model, x, params=0.5)
    assert not any(module.training for net in (model, thin) for module in net.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Noisy(nn.Module):
    """Noise in training, of a width that eval mode does not read."""

    def __init__(self, hidden: int, inner: int, twice: bool = False) -> None:
        super().__init__()
        self.hidden, self.inner, self.other = hidden, inner, hidden if twice else 5
        self.a, self.b, self.c = nn.Linear(16, hidden), nn.Linear(hidden, inner), nn.Linear(inner, 5)

    def forward(self, x):
        h = self.a(x).relu()
        if self.training:
            h = h + torch.zeros(len(x), self.hidden, device=x.device)
        h = self.b(h).relu()
        if self.training:
            h = h + torch.zeros(len(x), self.inner, device=x.device)
        return self.c(h)


@pytest.mark.parametrize(("hidden", "inner"), [(64, 32), (48, 48)])
def test_widths_that_training_alone_reads_follow(tmp_path, hidden, inner):
    model, x = Noisy(hidden, inner).eval(), torch.randn(4, 16)
    plan = slimfast.plan(model, x, overrides={"a": 30, "b": inner // 3})
    thin = slimfast.prune_channels(model, plan)
    assert (thin.hidden, thin.inner) == (30, inner // 3)
    assert thin.train()(x).shape == (4, 5)
    slimfast.save(thin, tmp_path / "thin.safetensors")
    again = slimfast.load(tmp_path / "thin.safetensors", Noisy(hidden, inner))
    assert again.train()(x).shape == (4, 5)
    assert (model.hidden, model.inner) == (hidden, inner)
