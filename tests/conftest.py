"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from slimfast import Plan
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

pytest_plugins = [
    "support.cli_cases",
    "support.cpu_fixtures",
    "support.cuda_fixtures",
    "support.hostile_cases",
    "support.plan_cases",
    "support.trainer_cases",
]

# timm and transformers import torchvision, whichever test is the first to need them.
prepare_torchvision()


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that slimfast.kernels allocates holds NaN (integers: 77) until a kernel writes it."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = empty(*args, **kwargs)
        if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("slimfast.kernels"):
            out.fill_(float("nan") if out.is_floating_point() else 77)
        return out

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A process that may write 2 KiB to a file and then gets an error, as from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 11, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True)
def plans_follow_their_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan that any test writes as JSON follows the published schema."""
    to_json = Plan.to_json

    def checked(plan: Plan) -> str:
        # Not at the top: what runs kernels alone needs no jsonschema.
        from support import plan_schemas

        text = to_json(plan)
        plan_schemas.check(text)
        return text

    monkeypatch.setattr(Plan, "to_json", checked)


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder this process may not write to; the superuser, who may, becomes somebody else for a while."""
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(user)
    tmp_path.chmod(0o755)


@pytest.fixture
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """``with threads(n):`` runs its body with torch's number of threads set to n."""

    @contextmanager
    def set_threads(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return set_threads


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: the shape annotations of the ops are not enforced, only their own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
