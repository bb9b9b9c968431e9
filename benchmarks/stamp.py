"""Where and with what a result was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slimfast.kernels import native

ROOT = Path(__file__).resolve().parents[1]
_DISTRIBUTIONS = ("slimfast", "torch", "triton", "numpy", "accelerate", "timm", "torch-pruning")


def stamp(device: str) -> dict[str, Any]:
    """Machine, versions, commit and date, to stand beside results."""
    cpu = native.cpu().module
    return {
        "machine": {
            "cpu": _cpu_name(),
            "isa": cpu.isa() if cpu else None,
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "load": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: _version(name) for name in _DISTRIBUTIONS},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def add_row(result: dict[str, Any], row: Mapping[str, Any], made: dict[str, Any]) -> None:
    """Append a row to a result, and the stamp of the run that made it; stamps of other commits, which rows
    that are there have, stay below ``earlier``, the latest first.
    """
    if result["rows"] and result["stamp"]["commit"] != made["commit"]:
        stamps = [result["stamp"], *result.get("earlier", [])]
        result["earlier"] = [old for old in stamps if old["commit"] != made["commit"]]
    result["rows"].append(dict(row))
    result["stamp"] = made


def made_at(result: Mapping[str, Any]) -> str:
    """What the tables say of a result's origin: version of torch, date and commits."""
    made = result["stamp"]
    earlier = [f"{old['commit']} ({old['date']})" for old in result.get("earlier", [])]
    also = f"; earlier rows at {', '.join(earlier)}" if earlier else ""
    return f"torch {made['versions']['torch']}, {made['date']}, commit {made['commit']}{also}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The short hash, with a + where tracked files have changed; None outside a git checkout."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return commit and commit + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
