"""What a hook makes of parameters before each forward has the thin width at once, not at the next forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slimfast

HOOKS = {
    "mask": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "masks, one after the other": lambda layer: [
        prune.random_unstructured(layer, name, 0.3) for name in ("weight", "bias", "weight")
    ],
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", HOOKS)
def test_the_attribute_is_what_the_next_forward_makes(how, training, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    HOOKS[how](model[2])
    model.train(training)
    x = torch.randn(3, 5)
    thin = slimfast.slim(model, x, params=0.5)
    slimfast.save(thin, tmp_path / "thin.safetensors")
    for net in (thin, slimfast.load(tmp_path / "thin.safetensors", model)):
        layer = net[2]
        held = {
            name: tensor.detach().clone()
            for name, tensor in vars(layer).items()
            if name in ("weight", "bias")
        }
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        assert held["weight"].shape == (len(layer.bias), layer.in_features) != (8, 12)
        net.eval()(x)
        for name, tensor in held.items():
            torch.testing.assert_close(tensor, getattr(layer, name))
        assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())
