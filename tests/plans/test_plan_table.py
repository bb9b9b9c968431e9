"""The table of a plan: within 80 columns, whatever the names, and what it says of low ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slimfast
from slimfast.plans.plan_table import COLUMNS, quantity


class _Named(nn.Module):
    def __init__(self, name: str, body: nn.Module) -> None:
        super().__init__()
        self._name = name
        setattr(self, name, body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self._name)(x)


def deep(name: str) -> nn.Module:
    """A network whose layers are named NAME.0, NAME.2 and NAME.4."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2)
    return _Named(name, nn.Sequential(*layers)).eval()


@pytest.mark.parametrize("length", [1, 20, 36, 37, 60, 78])
def test_the_table_fits_eighty_columns_and_names_every_group_whole(length: int) -> None:
    plan = slimfast.plan(deep("n" * length), torch.zeros(1, 4), macs=0.5)
    lines = str(plan).splitlines()
    names = [group.name for group in plan.groups]
    for group in names:
        assert any(line.split()[0] == group for line in lines)
    # A name that is longer than a line is still told whole.
    assert all(len(line) <= COLUMNS or any(name in line for name in names) for line in lines)
    for group in plan.groups:
        assert any(f"{group.n} -> {group.width} " in line for line in lines)


def test_a_low_rank_is_told_with_what_helps() -> None:
    # 64 units over 4 positions: 3 directions.
    model, x = deep("m"), torch.zeros(1, 4)
    told = " ".join(str(slimfast.plan(model, x, explained_variance=1.0)).split())
    assert "low rank: 1 of 2 groups keep all of their variance in fewer units" in told
    assert "(m.0)" in told
    assert "widths past the rank are shared out evenly" not in told
    told = " ".join(str(slimfast.plan(model, x, macs=0.95)).split())
    assert "widths past the rank are shared out evenly" in told
    assert "slimfast.calibrate" in told
    whole = str(slimfast.plan(model, x, explained_variance=1.0, exclude=["m.0"]))
    assert "low rank" not in whole


def test_each_line_says_what_chose_the_width() -> None:
    plan = slimfast.plan(deep("m"), torch.zeros(1, 4), overrides={"m.0": 10})
    by = {line.split()[0]: line.split()[-1] for line in str(plan).splitlines() if line.startswith("m.")}
    assert by == {"m.0": "hand", "m.2": "alone"}


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (999, "999"), (999.6, "1.00K"), (4652008, "4.65M")])
def test_quantities_have_three_digits(count: float, text: str) -> None:
    assert quantity(count) == text
