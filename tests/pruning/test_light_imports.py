"""A process that prunes a small network imports no compiler."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import torch
from torch import nn
import slimfast

def build():
    head = [nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head)

model, x = build().eval(), torch.randn(1, 3, 8, 8)
plan = slimfast.plan(model, x, params=0.5)
thin = slimfast.prune_channels(model, plan)
slimfast.save(thin, sys.argv[1])
slimfast.load(sys.argv[1], build())
print(sorted({name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "sympy")}))
"""


def test_pruning_a_small_network_imports_no_compiler(tmp_path):
    path = str(tmp_path / "thin.safetensors")
    ran = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
