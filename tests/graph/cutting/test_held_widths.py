"""Attributes that hold a width although the forward does not read them: those that can be decided follow."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import slimfast
from slimfast.graph import trace_channels
from slimfast.graph.cutting.patches import Patch, apply_patches, read_attribute


@dataclass(frozen=True)
class Frozen:
    hidden_dim: int = 24
    dropout: float = 0.1


@dataclass
class Table:
    widths: dict[str, int] = field(default_factory=lambda: {"hidden": 24})


Pair = namedtuple("Pair", "channels name")


class Body(nn.Module):
    """24 features between two layers, and whatever is said about them beside."""

    def __init__(self, **said) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(24, 10)
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.fc(self.body(x))


X = torch.randn(1, 3, 8, 8)


def thin_of(model: nn.Module, x=X, **options) -> nn.Module:
    return slimfast.slim(model.eval(), x, **(options or {"params": 0.5}))


def test_an_attribute_with_the_only_width_of_its_length_follows():
    thin = thin_of(Body(num_features=24, embed_dim=24, c=24))
    width = thin.fc.in_features
    assert width < 24
    assert (thin.num_features, thin.embed_dim, thin.c) == (width, width, width)
    thin.fc = nn.Linear(thin.num_features, 3)
    assert thin(X).shape == (1, 3)


HELD = [
    ("channels", [3, 24], lambda m: m.channels[1]),
    ("channels", (3, 24, "x"), lambda m: m.channels[1]),
    ("feature_info", [{"num_chs": 24, "module": "body.0"}], lambda m: m.feature_info[0]["num_chs"]),
    ("feature_info", SimpleNamespace(info=[{"num_chs": 24, "module": "body"}]),
     lambda m: m.feature_info.info[0]["num_chs"]),
    ("settings", Frozen(), lambda m: m.settings.hidden_dim),
    ("table", Table(), lambda m: m.table.widths["hidden"]),
    ("pair", Pair(24, "first"), lambda m: m.pair.channels),
    ("nested", {"a": {"b": [{"out_channels": 24}]}}, lambda m: m.nested["a"]["b"][0]["out_channels"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "read"), HELD)
def test_what_is_nested_follows_and_stays_what_it_is(name, value, read, tmp_path):
    model = Body(**{name: value})
    before = repr(value)
    thin = thin_of(model)
    assert read(thin) == thin.fc.in_features < 24
    assert type(getattr(thin, name)) is type(value)
    # what the model holds is not the thin network's
    assert repr(value) == before
    slimfast.save(thin, tmp_path / "thin.safetensors")
    again = slimfast.load(tmp_path / "thin.safetensors", Body(**{name: value}))
    assert read(again) == read(thin)
    assert repr(value) == before


def test_what_a_module_makes_of_frozen_width_is_not_taken_for_one_inside():
    torch.manual_seed(0)
    model = Stream(12, 12, None).eval()
    model.feature_info = [{"num_chs": 12, "module": "blocks"}]
    x = torch.randn(1, 3, 8, 8)
    graph = trace_channels(model, x, exclude=["residual"])
    assert {group.kind for group in graph} == {"channel"}
    assert "feature_info.0.num_chs" not in {attribute.name for attribute in graph.attributes or ()}


def test_items_of_a_sequence_follow_beside_those_that_the_forward_reads(tmp_path):
    """One item is the size of a reshape, which a trial finds; the other is read by nobody."""

    class Sized(Body):
        def forward(self, x):
            x = self.body(x)
            return self.fc(x.reshape(-1, self.dims[0]))

    thin = thin_of(Sized(dims=[24, 24, 7]))
    width = thin.fc.in_features
    assert thin.dims == [width, width, 7]
    slimfast.save(thin, tmp_path / "thin.safetensors")
    assert slimfast.load(tmp_path / "thin.safetensors", Sized(dims=[24, 24, 7])).dims == thin.dims


def test_numbers_that_are_called_something_else_stay_and_are_not_told():
    said = {"image_size": 24, "num_classes": 24, "max_tokens": 24, "kernel": 24, "input_size": 24}
    model = Body(**said)
    thin = thin_of(model)
    assert all(getattr(thin, name) == 24 for name in said)
    plan = slimfast.plan(model, X, params=0.5)
    assert "attributes that stay" not in plan.explain()


def test_what_cannot_be_decided_is_told_where_the_plan_changes_it():
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    model.width = 12
    model.foo = 12
    x = torch.randn(2, 5)
    plan = slimfast.plan(model, x, params=0.5)
    told = plan.explain().partition("attributes that stay")[2]
    assert "  width = 12 (0, 2)" in told
    assert "  foo = 12 (0, 2)" in told
    assert slimfast.prune_channels(model, plan).width == 12
    whole = slimfast.plan(model, x, overrides={"0": 12, "2": 12})
    assert "attributes that stay" not in whole.explain()


def test_an_attribute_that_the_forward_reads_as_a_factor_stays():
    class Scaled(Body):
        def forward(self, x):
            return self.fc(self.body(x) / self.embed_dim**0.5)

    model = Scaled(embed_dim=24, num_features=24)
    thin = thin_of(model)
    assert thin.embed_dim == 24
    assert thin.num_features == thin.fc.in_features < 24


def test_an_attribute_that_another_call_reads_as_a_factor_stays():
    class Scaled(Body):
        def forward(self, x, scale=None):
            x = self.body(x)
            return self.fc(x if scale is None else x / self.embed_dim**0.5)

    model = Scaled(embed_dim=24, num_features=24).eval()
    assert thin_of(model).embed_dim < 24
    thin = thin_of(model, params=0.5, also=[(X, X)])
    assert thin.embed_dim == 24
    assert thin.num_features == thin.fc.in_features < 24


def test_a_width_in_a_table_that_training_alone_reads_follows():
    class Noisy(Body):
        def forward(self, x):
            x = self.body(x)
            return self.fc(x + torch.randn(len(x), self.table["width"]) if self.training else x)

    thin = thin_of(Noisy(table={"width": 24}))
    assert thin.table["width"] == thin.fc.in_features < 24
    assert thin.train()(X).shape == (1, 10)


def test_an_attribute_that_decides_what_runs_stays():
    class Guarded(Body):
        def forward(self, x):
            x = self.body(x)
            return self.fc(x if self.width == 24 else x * 2)

    assert thin_of(Guarded(width=24)).width == 24


class Block(nn.Module):
    """A block of a residual stream, which says how wide the stream and its inside are."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.hidden_features, self.out_channels = dim, hidden, dim
        self.up, self.down = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Stream(nn.Module):
    def __init__(self, dim: int, hidden: int, config) -> None:
        super().__init__()
        self.num_features, self.config = dim, config
        self.stem, self.last = nn.Conv2d(3, dim, 1), nn.Conv2d(dim, 4, 1)
        self.blocks = nn.Sequential(Block(dim, hidden), Block(dim, hidden))
        for block in self.blocks:
            block.config = config

    def forward(self, x):
        return self.last(self.blocks(self.stem(x)))


@pytest.mark.parametrize("hidden", [16, 12])
def test_names_choose_among_widths_that_were_equal(hidden):
    torch.manual_seed(0)
    model = Stream(12, hidden, SimpleNamespace(embed_dim=12))
    thin = thin_of(model, overrides={"stem[residual]": 7, "blocks.0.up": 5, "blocks.1.up": 6})
    assert (thin.num_features, thin.config.embed_dim) == (7, 7)
    for block in thin.blocks:
        assert (block.dim, block.out_channels, block.config.embed_dim) == (7, 7, 7)
    assert model.config.embed_dim == 12


def test_a_configuration_of_the_hub_stays_and_is_told():
    class Config(SimpleNamespace):
        def to_dict(self):
            return vars(self)

    model = Body(config=Config(hidden_size=24))
    assert thin_of(model).config.hidden_size == 24
    assert "config.hidden_size = 24" in slimfast.plan(model, X, params=0.5).explain()


def test_patches_reach_into_lists_and_tables():
    model = Body(held={"a": [1, (2, 3)]})
    assert read_attribute(model, "held.a.1.0") == 2
    assert read_attribute(model, "held.a.9") is None
    apply_patches(model, [Patch("", "held.a.1.0", 2, 7), Patch("", "held.a.0", 1, 5)])
    assert model.held == {"a": [5, (7, 3)]}


def test_a_plain_tensor_is_named_as_the_reason():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.table, self.b = nn.Linear(8, 32), torch.rand(1, 5, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.b(torch.relu(self.a(x) + self.table))

    graph = trace_channels(Plain().eval(), torch.randn(2, 5, 8))
    reason = "table is a plain tensor of the model: make it a buffer (register_buffer)"
    assert {(f.tensor, f.dim) for f in graph.frozen if f.reason == reason} == {
        ("a.weight", 0),
        ("b.weight", 1),
    }


def test_attributes_are_in_the_graph_with_the_axis_they_follow():
    graph = trace_channels(Body(num_features=24).eval(), X)
    (attribute,) = [a for a in graph.attributes or () if a.name == "num_features"]
    ((group, units),) = attribute.axis.parts
    assert group == "body.0"
    assert np.array_equal(units, np.arange(24))
