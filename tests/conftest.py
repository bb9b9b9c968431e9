"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A process that may write 2 KiB to a file and then gets an error, as from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 11, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


@pytest.fixture(autouse=True)
def no_accelerator_is_left() -> Iterator[None]:
    """Forget the process-wide settings of an accelerator that a test made: the next test may want others."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state:
        state.AcceleratorState._reset_state()
