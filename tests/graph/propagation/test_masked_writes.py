"""Rows that a mask chooses: read by it, and written one after the other."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import summary
from torch import nn

import slimfast
from slimfast.graph import trace_channels

IDS = torch.tensor([[9, 9, 1, 9, 2, 3], [4, 9, 9, 9, 5, 6]])
IMAGE = torch.randn(2, 3, 8)


def _language(fill):
    """Embeds tokens, puts image features in the places of token 9, and has a hidden layer."""
    torch.manual_seed(0)

    def forward(self, ids, image):
        h, features, mask = self.embed(ids), self.see(image), ids == 9
        h = fill(h, features, mask)
        return self.head(h + self.down(torch.relu(self.up(h))))

    parts = {"embed": nn.Embedding(10, 32), "see": nn.Linear(8, 32), "up": nn.Linear(32, 64)}
    return Net(forward, **parts, down=nn.Linear(64, 32), head=nn.Linear(32, 16)).eval()


def _scattered(h, features, mask):
    return h.masked_scatter(mask[..., None].expand_as(h), features)


def _scattered_broadcast(h, features, mask):
    return h.masked_scatter(mask[..., None], features)


def _scattered_after_a_check(h, features, mask):
    wide = mask.unsqueeze(-1).expand_as(h).to(h.device)
    if h[wide].numel() != features.numel():
        raise ValueError("image features and image tokens do not match")
    return h.masked_scatter(wide, features)


def _counted(h, features, mask):
    if int(mask.sum()) != features.shape[0] * features.shape[1]:
        raise ValueError("image features and image tokens do not match")
    return torch.where(mask[..., None], features.mean(1, keepdim=True), h)


def _put(h, features, mask):
    h = h.clone()
    h[mask] = features.flatten(0, 1)
    return h


FILLS = [_scattered, _scattered_broadcast, _scattered_after_a_check, _counted, _put]


@pytest.mark.parametrize("fill", FILLS)
def test_image_features_in_the_places_of_tokens(fill):
    model, example = _language(fill), {"ids": IDS, "image": IMAGE}
    graph = trace_channels(model, example)
    assert summary(graph) == {"embed[residual]": ("residual", 32), "up": ("channel", 64)}
    assert {"see.weight", "embed.weight", "down.weight"} <= {
        m.tensor for m in graph["embed[residual]"].members
    }
    thin = slimfast.slim(model, example, params=0.5)
    assert thin.embed.embedding_dim == thin.see.out_features < 32
    assert thin(**example).shape == (2, 6, 16)


def test_a_plan_from_a_file_keeps_the_places(tmp_path):
    model, example = _language(_scattered_after_a_check), {"ids": IDS, "image": IMAGE}
    slimfast.plan(model, example, params=0.5).save(tmp_path / "plan.json")
    plan = slimfast.Plan.load(tmp_path / "plan.json")
    assert slimfast.prune_channels(model, plan).embed.embedding_dim < 32


def test_elements_that_are_not_whole_rows_stay():
    def crooked(h, features, mask):
        # as many elements, but not row by row
        return h.masked_scatter(mask[..., None].expand_as(h), features.transpose(1, 2))

    graph = trace_channels(_language(crooked), {"ids": IDS, "image": IMAGE})
    assert set(summary(graph)) == {"up"}
    assert any("masked_scatter" in f.reason for f in graph.frozen if f.tensor == "see.weight")


def test_a_mask_of_all_tokens_and_some_channels_freezes():
    def by_channel(h, features, mask):
        return h.masked_scatter(torch.arange(32) % 2 == 0, features.repeat(1, 4, 1))

    assert set(summary(trace_channels(_language(by_channel), {"ids": IDS, "image": IMAGE}))) == {"up"}


def test_a_mask_of_more_axes_than_the_target_freezes():
    # both are broadcast to each other, and rows are no longer what is written
    def repeated(h, features, mask):
        return h[0].masked_scatter(mask[..., None], features)

    graph = trace_channels(_language(repeated), {"ids": IDS, "image": IMAGE})
    assert set(summary(graph)) == {"up"}
    assert any("masked_scatter" in f.reason for f in graph.frozen if f.tensor == "see.weight")


def test_a_mask_of_elements_freezes():
    def by_element(h, features, mask):
        return h.masked_scatter(h > 0, features.repeat(1, 4, 1))

    graph = trace_channels(_language(by_element), {"ids": IDS, "image": IMAGE})
    assert set(summary(graph)) == {"up"}


def test_the_grid_of_an_image_decides_its_shape():
    def forward(self, x, grid):
        height, width = grid[0].tolist()
        h = torch.relu(self.a(x)).view(height, width, -1)
        return self.c(torch.relu(self.b(h.transpose(0, 1))))

    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 32), c=nn.Linear(32, 4)).eval()
    example = (torch.randn(12, 8), torch.tensor([[3, 4]]))
    assert set(summary(trace_channels(model, example))) == {"a", "b"}
    assert slimfast.slim(model, example, params=0.5)(*example).shape == (4, 3, 4)
