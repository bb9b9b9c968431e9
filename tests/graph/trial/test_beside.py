"""Attributes that no operation is known to be given follow in the trial, which shows if one reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.graph import trace_channels

X = torch.randn(1, 3, 8, 8)


class Tokens(nn.Module):
    """Reshapes by an attribute, so that a trial is needed."""

    def __init__(self, read=None, **said) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc, self.heads, self.read = nn.Linear(24, 10), 6, read
        for name, value in said.items():
            setattr(self, name, value)

    def forward(self, x):
        x = self.body(x).view(len(x), self.heads, -1).relu().flatten(1)
        return self.fc(x if self.read is None else self.read(self, x))


@pytest.mark.parametrize(
    ("read", "follows"),
    [
        (None, True),
        # a check holds at both widths
        (lambda m, x: x if m.embed_dim == x.shape[1] else x + 1, True),
        (lambda m, x: x / float(m.embed_dim) ** 0.5, False),
        (lambda m, x: x / m.embed_dim, False),
        (lambda m, x: x + torch.full((1,), m.embed_dim), False),
        (lambda m, x: x if m.embed_dim == 24 else x.relu(), False),
    ],
)
def test_a_trial_shows_whether_an_attribute_is_read(read, follows):
    thin = slimfast.slim(Tokens(read, embed_dim=24, num_features=24).eval(), X, params=0.5)
    width = thin.fc.in_features
    assert width < 24
    assert thin.num_features == width
    assert thin.embed_dim == (width if follows else 24)


def test_where_a_trial_is_run_nothing_is_recorded_for_what_no_forward_reads():
    counts = []
    for said in ({}, {"num_features": 24}):
        model = Tokens(**said).eval()
        count = [0]
        forward = Tokens.forward

        def counted(self, x, forward=forward, count=count):
            count[0] += 1
            return forward(self, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tokens, "forward", counted)
            trace_channels(model, X)
        counts.append(count[0])
    assert counts[0] == counts[1]
