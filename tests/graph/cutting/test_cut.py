"""Structure after a cut: kept indices, predicted shapes, patched attributes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.channel_graphs import hidden_graph, hidden_model
from support.pruning_cases import OptionA
from torch import nn
from torch.nn import functional

from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Axis, ChannelGraph, ChannelGroup, Constant, Member, Operation, Places
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.cutting.patches import Patch, apply_patches, standard_attributes
from slimfast.graph.cutting.prediction import check_thin
from slimfast.graph.recording.network import Network


def as_lists(cuts):
    return {name: {dim: index.tolist() for dim, index in dims.items()} for name, dims in cuts.items()}


def test_cut_names_the_tensors_and_dims_that_change():
    keep = {"hidden": np.array([0, 3])}
    kept = [0, 3]
    assert as_lists(Cut(hidden_graph(), keep).tensor_cuts) == {
        "0.weight": {0: kept},
        "0.bias": {0: kept},
        "1.weight": {1: kept},
    }
    assert Cut(hidden_graph(), {"hidden": np.arange(4)}).tensor_cuts == {}
    assert Cut(hidden_graph(), {}).tensor_cuts == {}


def test_an_index_of_two_groups_survives_when_both_keep_it():
    fused = Axis.of(6, (("head", np.repeat([0, 1], 3)), ("dim", np.tile([0, 1, 2], 2))))
    members = (Member("w", 0, "producer", Places.of(np.repeat([0, 1], 3))),)
    groups = (ChannelGroup("head", "head", 2, members), ChannelGroup("dim", "head_dim", 3, members))
    graph = ChannelGraph(groups, {"w": (fused,)}, frozenset({"w"}), (), (), None, attributes=())
    keeps = {"head": np.array([1]), "dim": np.array([0, 2])}
    assert as_lists(Cut(graph, keeps).tensor_cuts) == {"w": {0: [3, 5]}}


@pytest.mark.parametrize(
    ("keeps", "message"),
    [
        ({"other": np.array([0])}, "no group 'other'"),
        ({"hidden": np.array([], dtype=np.int64)}, r"at least one unit.*\(hidden\)"),
        ({"hidden": np.array([0, 4])}, r"units in 0\.\.3, got 2 in 0\.\.4 \(hidden\)"),
        ({"hidden": np.array([2, 1])}, r"sorted, distinct.*\(hidden\)"),
        ({"hidden": np.array([1, 1])}, r"sorted, distinct.*\(hidden\)"),
        ({"hidden": np.array([0.0])}, r"at least one unit.*\(hidden\)"),
    ],
)
def test_keeps_that_are_no_units_are_refused(keeps, message):
    with pytest.raises(ValueError, match=message):
        Cut(hidden_graph(), keeps)


def test_predicted_shapes_are_those_of_the_operations():
    cut = Cut(hidden_graph(), {"hidden": np.array([1])})
    assert [cut.shapes_of(operation) for operation in cut.graph.operations] == [((5, 1),), ((5, 2),)]


def test_patches_of_standard_layers_follow_their_tensors():
    cut = Cut(hidden_graph(), {"hidden": np.array([0, 2, 3])})
    assert cut.attribute_patches(Network.of(hidden_model())) == (
        Patch("0", "out_features", 4, 3),
        Patch("1", "in_features", 4, 3),
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("share", [False, True])
def test_a_thin_copy_has_the_slices_and_leaves_the_network(share, device):
    network = Network.of(hidden_model().to(device))
    thin = Cut(hidden_graph(), {"hidden": np.array([0, 3])}).thin_copy(network, share=share)
    assert (thin[0].out_features, thin[1].in_features, network.model[0].out_features) == (2, 2, 4)
    wide, kept = network.tensors["1.weight"], thin[1].weight
    assert (kept.shape, kept.device, kept.requires_grad) == ((2, 2), wide.device, True)
    assert wide.shape == (2, 4)
    assert wide.is_meta or torch.equal(kept, wide[:, [0, 3]])
    assert (thin[1].bias is network.tensors["1.bias"]) == share


@pytest.mark.parametrize(
    ("module", "shapes", "expected"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), {"weight": (3, 2, 3, 3)}, {"out_channels": 3, "in_channels": 2}),
        (nn.ConvTranspose1d(4, 6, 3), {"weight": (2, 5, 3)}, {"in_channels": 2, "out_channels": 5}),
        (
            nn.Bilinear(3, 4, 5),
            {"weight": (2, 3, 1)},
            {"out_features": 2, "in1_features": 3, "in2_features": 1},
        ),
        (nn.Embedding(9, 4), {"weight": (9, 3)}, {"num_embeddings": 9, "embedding_dim": 3}),
        (nn.BatchNorm1d(4), {"weight": (3,)}, {"num_features": 3}),
        (nn.BatchNorm1d(4, affine=False), {"running_mean": (3,)}, {"num_features": 3}),
        (nn.RMSNorm((2, 4)), {"weight": (2, 3)}, {"normalized_shape": (2, 3)}),
        (nn.GroupNorm(2, 4), {"weight": (2,)}, {"num_channels": 2}),
        (nn.PReLU(4), {"weight": (2,)}, {"num_parameters": 2}),
    ],
)
def test_attributes_of_standard_layers(module, shapes, expected):
    assert standard_attributes(module, shapes, groups=1) == expected
    assert all(hasattr(module, name) for name in expected)


def test_check_thin_names_the_operation_that_is_not_as_predicted():
    cut = Cut(hidden_graph(), {"hidden": np.array([0, 1])})
    assert check_thin(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), cut) == []
    found = check_thin(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), cut)
    assert [str(m) for m in found] == ["aten.linear at 0: expected shapes ((5, 2),), got ((5, 3),)"]
    short = check_thin(nn.Sequential(nn.Linear(3, 2)), cut)
    assert [(m.module, m.got) for m in short] == [("1", "nothing more")]
    long = check_thin(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.ReLU()), cut)
    assert [(m.module, m.got) for m in long] == [("2", "aten.relu")]
    other = check_thin(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), cut)
    assert [(m.module, m.expected, m.got) for m in other] == [("1", "aten.linear", "aten.relu")]


def test_check_thin_compares_constants_where_the_shapes_agree():
    graph = hidden_graph()
    front, back = (Axis.of(n, (("hidden", np.arange(n)),)) for n in (2, 1))
    padded = Axis.of(7, (("hidden", np.array([0, 1, -1, -1, -1, -1, 0])),))
    constants = (Constant("pad[0]", 2, front), Constant("pad[1]", 1, back))
    pad = Operation("aten.constant_pad_nd", "", ((Axis(5), padded),), constants=constants)
    linear = Operation("aten.linear", "0", ((Axis(5), Axis(4)),))
    graph = dataclasses.replace(graph, operations=(linear, pad))

    class Pads(nn.Module):
        def __init__(self, *pads: int) -> None:
            super().__init__()
            self.add_module("0", nn.Linear(3, 4))
            self.pads = pads

        def forward(self, x):
            return functional.pad(self.get_submodule("0")(x), self.pads)

    assert check_thin(Pads(2, 1), Cut(graph, {})) == []
    assert [str(m) for m in check_thin(Pads(1, 2), Cut(graph, {}))] == [
        "aten.constant_pad_nd at the model itself: expected pad[0] = 2, got 1",
        "aten.constant_pad_nd at the model itself: expected pad[1] = 1, got 2",
    ]


def test_apply_patches_keeps_the_type_of_a_sequence_and_checks_what_was_there():
    model = OptionA()
    apply_patches(model, [Patch("", "pads", (0, 0, 0, 0, 2, 2), (0, 0, 0, 0, 1, 0))])
    assert model.pads == [0, 0, 0, 0, 1, 0]
    with pytest.raises(SlimfastError, match=r"OptionA: expected pads = \(0, 0, 0, 0, 2, 2\), got \(0, 0"):
        apply_patches(model, [Patch("", "pads", (0, 0, 0, 0, 2, 2), (0,) * 6)])
