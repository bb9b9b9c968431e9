"""Rounds have budgets of what can be counted: a latency table is of one network alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast


def test_a_budget_of_latency_is_refused():
    model = nn.Sequential(nn.Linear(4, 8, device="cpu"), nn.ReLU(), nn.Linear(8, 2, device="cpu"))
    with pytest.raises(ValueError, match="rounds: expected a budget of params or macs, got latency"):
        slimfast.rounds(model, torch.zeros(1, 4, device="cpu"), latency=0.5, rounds=2)
