"""Spectra of what layers compute with are those of a network with plain weights, from any source."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.spectra import measure_spectra

X = torch.randn(2, 8, 11)


def networks(*, rows: int = 12) -> tuple[nn.Module, nn.Module]:
    """A network with a mask, a weight norm and dead scales, and one with plain weights that does the same."""
    torch.manual_seed(1)
    first, second, last = nn.Conv1d(8, rows, 3), nn.Conv1d(rows, 6, 3), nn.Conv1d(6, 4, 1)
    plain = nn.Sequential(first, nn.ReLU(), second, nn.BatchNorm1d(6), nn.ReLU(), last).eval()
    made = copy.deepcopy(plain)
    prune.random_structured(made[0], "weight", 5, dim=0)
    parametrizations.weight_norm(made[2])
    with torch.no_grad():
        made[3].weight[[1, 4]] = 0
        made[2].parametrizations.weight.original1[::2] *= 100
        plain[0].weight.copy_(made[0].weight)
        plain[2].weight.copy_(made[2].weight)
        plain[2].weight[[1, 4]] = 0
    return made, plain


@pytest.mark.parametrize(
    "options", [{}, {"scaling": "unit"}, {"member_scaling": True}, {"dtype": torch.float64}]
)
def test_spectra_are_those_of_the_weights_that_are_computed_with(options):
    made, plain = networks()
    graph, same = trace_channels(made, X), trace_channels(plain, X)
    spectra, expected = measure_spectra(made, graph, **options), measure_spectra(plain, same, **options)
    for group, other in zip(graph, same, strict=True):
        assert (spectra[group.name].n, spectra[group.name].d) == (
            expected[other.name].n,
            expected[other.name].d,
        )
        assert np.array_equal(spectra[group.name].eigenvalues, expected[other.name].eigenvalues)


def test_spectra_are_the_same_from_a_module_a_mapping_and_a_file(tmp_path):
    made, _ = networks()
    graph = trace_channels(made, X)
    state = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    expected = measure_spectra(made, graph)
    for source in (state, tmp_path / "weights.safetensors", tmp_path / "weights.pth"):
        found = measure_spectra(source, graph)
        for name, spectrum in found.items():
            assert np.array_equal(spectrum.eigenvalues, expected[name].eigenvalues)


def test_a_sidecar_knows_that_a_mask_has_changed(tmp_path):
    made, _ = networks()
    graph = trace_channels(made, X)
    first = measure_spectra(made, graph, resume=tmp_path / "sidecar")
    with torch.no_grad():
        made[0].weight_mask.fill_(1)
        made[3].weight.fill_(1)
    second = measure_spectra(made, graph, resume=tmp_path / "sidecar")
    for name in first:
        assert not np.array_equal(first[name].eigenvalues, second[name].eigenvalues)
        assert np.array_equal(second[name].eigenvalues, measure_spectra(made, graph)[name].eigenvalues)


def test_a_mask_that_is_missing_is_named():
    made, _ = networks()
    weights = {name: tensor for name, tensor in made.state_dict().items() if "mask" not in name}
    with pytest.raises(SlimfastError, match=r"no tensor '0\.weight_mask'"):
        measure_spectra(weights, trace_channels(made, X))
