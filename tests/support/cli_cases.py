"""A folder of a user of the command line: networks, weights, a plan and a thin network."""

from __future__ import annotations

import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import save_file

from slimfast.cli import main
from slimfast.cli.models import build_model

NETS = "nets_of_a_test"
NET = f"{NETS}:Net"

SOURCE = """
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.fc(x.mean((2, 3)))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.embed(ids))))

class Broken(Net):
    def forward(self, x):
        raise RuntimeError("a size does not fit\\nsecond line")

wide = lambda: Net(12)

def batches(count=4, shape=(8, 3, 6, 6)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator), torch.randint(0, 4, (shape[0],), generator=generator))
        for _ in range(count)
    ]

data = lambda: (batches(), batches(2))
wrong_data = lambda: batches(shape=(8, 1, 6, 6))
no_data = lambda: []

class Slow(list):
    def __iter__(self):
        for i, batch in enumerate(super().__iter__()):
            yield batch
            time.sleep(0.02)
            open("step", "w").close()

slow_data = lambda: Slow(batches(40))
"""


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


needs_accelerate = needs("accelerate")


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder of the user's own with a module of networks, and random but fixed weights of one."""
    (tmp_path / f"{NETS}.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("SLIMFAST_BACKEND", raising=False)
    yield tmp_path
    sys.modules.pop(NETS, None)


@pytest.fixture
def weights(workshop) -> str:
    save_file(build_model(NET, seed=5).state_dict(), "w.safetensors")
    return "w.safetensors"


@pytest.fixture
def plan(weights, capsys) -> str:
    assert (
        main(["plan", NET, "--weights", weights, "--input", "3x6x6", "--macs", "0.5", "-o", "plan.json"]) == 0
    )
    capsys.readouterr()
    return "plan.json"


@pytest.fixture
def thin(plan, weights, capsys) -> str:
    assert main(["prune", NET, plan, "--weights", weights, "-o", "thin.safetensors"]) == 0
    capsys.readouterr()
    return "thin.safetensors"


def files() -> set[str]:
    """What the commands left in the current folder."""
    return {path.name for path in Path().iterdir()} - {f"{NETS}.py", "__pycache__"}
