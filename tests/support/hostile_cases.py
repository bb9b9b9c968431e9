"""A network whose files strangers wrote, and the one line that refuses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slimfast import SlimfastError


def refused(read: Callable[..., Any], *arguments: Any, names: str | None = None) -> str:
    """The one line that ``read`` must refuse its arguments with; it names the file."""
    with pytest.raises(SlimfastError) as error:
        read(*arguments)
    line = str(error.value)
    assert line.isprintable()
    assert (names or str(arguments[0])) in line
    return line


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
