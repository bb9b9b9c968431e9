"""What only another call uses, and that in training alone: a detector's embedding of its noisy targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slimfast


class Denoising(nn.Module):
    """Called with an image it detects; with a dict of image and targets it returns a loss, and in training
    goes through queries made of the targets beside its own.
    """

    def __init__(self, *, asks: bool, idle: bool) -> None:
        super().__init__()
        self.asks, self.idle = asks, idle
        self.features, self.hidden = nn.Linear(6, 16), nn.Linear(16, 16)
        self.targets = nn.Embedding(5, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(x, dict):
            return self.detect(x["image"], x["kind"]).square().mean()
        return self.detect(x, None)

    def detect(self, image: Tensor, kind: Tensor | None) -> Tensor:
        found = torch.relu(self.features(image))
        if self.training and kind is not None:
            count = int(kind.max()) + 1 if self.asks else len(kind)
            found = torch.cat([found, self.targets.weight[:count]], 0)
        elif self.training and not self.idle:
            # So that every parameter has a gradient.
            found = found + 0 * self.targets.weight.sum()
        made: Tensor = self.head(torch.relu(self.hidden(found)))
        return made


EXAMPLE = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
BATCH = {"image": EXAMPLE, "kind": torch.tensor([0, 3])}


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("idle", [False, True])
def test_a_training_call_with_targets_goes_through_the_thin_network(*, asks: bool, idle: bool) -> None:
    torch.manual_seed(0)
    model = Denoising(asks=asks, idle=idle).eval()
    plan = slimfast.plan(model, EXAMPLE, params=0.6, also=[(BATCH,)])
    thin: Any = slimfast.prune_channels(model, plan)
    assert sum(p.numel() for p in thin.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    assert thin.targets.weight.shape[1] == thin.features.out_features
    thin.train()(BATCH).backward()
    assert thin.targets.weight.grad is not None


def test_a_call_that_fails_in_training_is_noted() -> None:
    class Failing(Denoising):
        def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
            if self.training and isinstance(x, dict):
                raise RuntimeError("needs a trainer")
            return super().forward(x)

    torch.manual_seed(0)
    graph = slimfast.trace_channels(Failing(asks=False, idle=True).eval(), EXAMPLE, also=[(BATCH,)])
    assert [note for note in graph.notes if "another call was not looked at in training mode" in note]
