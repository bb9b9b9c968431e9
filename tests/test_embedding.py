"""slimfast inside another program: silent, cancellable, the same from every thread and in every process."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.embedded import EXAMPLE, network
from torch import nn

import slimfast
from slimfast import Cancelled, Plan, SlimfastError
from slimfast.distillation.resume import FILE

ROOT = Path(slimfast.__file__).parents[1]


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 5, (4,), generator=generator))
        for _ in range(count)
    ]


def whole(model: nn.Module) -> bytes:
    """All tensors of a module as bytes."""
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


class Token:
    """A progress callback that cancels at its call number ``at``, and counts."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.calls += 1
        if self.calls == self.at:
            raise Cancelled(f"at {done} of {total}")


VERBS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "measure_spectra": lambda model, token: slimfast.measure_spectra(model, progress=token),
    "plan": lambda model, token: slimfast.plan(model, EXAMPLE, macs=0.5, progress=token),
    "prune_channels": lambda model, token: slimfast.prune_channels(
        model, slimfast.plan(model, EXAMPLE, macs=0.5), progress=token
    ),
    "slim": lambda model, token: slimfast.slim(model, EXAMPLE, macs=0.5, progress=token),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_call_of_progress_may_cancel_and_leaves_the_model_as_it_was(verb: str) -> None:
    model = network()
    before, attributes = whole(model), set(vars(model))
    never = Token(0)
    expected = VERBS[verb](model, never)
    assert never.calls >= 2
    for at in range(1, never.calls + 1):
        with pytest.raises(Cancelled, match=r"at \d+ of \d+"):
            VERBS[verb](model, Token(at))
        assert whole(model) == before
        assert set(vars(model)) == attributes
        assert model.training
    again = VERBS[verb](model, Token(0))
    if isinstance(expected, nn.Module):
        assert whole(again) == whole(expected)
    else:
        assert repr(again) == repr(expected)


def test_an_event_of_another_thread_is_a_token() -> None:
    wanted = threading.Event()

    def progress(done: int, total: int) -> None:
        if wanted.is_set():
            raise Cancelled

    slimfast.measure_spectra(network(), progress=progress)
    wanted.set()
    with pytest.raises(SlimfastError, match=r"^cancelled$"):
        slimfast.measure_spectra(network(), progress=progress)


def test_a_cancelled_measurement_goes_on_from_its_sidecar(tmp_path: Path) -> None:
    model, sidecar = network(), tmp_path / "spectra.sidecar"
    slimfast.save_spectra(slimfast.measure_spectra(model), tmp_path / "whole.safetensors")
    with pytest.raises(Cancelled):
        slimfast.measure_spectra(model, progress=Token(2), resume=sidecar)
    left = Token(0)
    slimfast.save_spectra(
        slimfast.measure_spectra(model, progress=left, resume=sidecar), tmp_path / "resumed.safetensors"
    )
    assert left.calls == 1
    assert (tmp_path / "resumed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_cancelled_distillation_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    teacher = network()

    def run(folder: Path, progress: Any, *, resume: bool = False) -> bytes:
        student = network(seed=2)
        slimfast.distill(
            student,
            teacher=teacher,
            train=batches(),
            epochs=2,
            checkpoint=folder,
            resume=resume,
            progress=progress,
        )
        return whole(student)

    steps = Token(0)
    expected = run(tmp_path / "unstopped", steps)
    assert steps.calls == 8
    for at in (1, 4, 6, 8):
        with pytest.raises(Cancelled, match=f"at {at} of 8"):
            run(tmp_path / f"{at}", Token(at))
        assert [path.name for path in (tmp_path / f"{at}").iterdir()] == [FILE]
        rest = Token(0)
        assert run(tmp_path / f"{at}", rest, resume=True) == expected
        assert rest.calls == 8 - at


def test_a_cancelled_distillation_without_a_folder_gives_the_models_back() -> None:
    pytest.importorskip("accelerate")
    teacher, student = network(), network(seed=2)
    before = whole(teacher)
    with pytest.raises(Cancelled):
        slimfast.distill(student, teacher=teacher, train=batches(), epochs=2, progress=Token(3))
    assert whole(teacher) == before
    assert "_slimfast" not in "".join(vars(student))
    assert type(student.forward).__name__ == "method"


# Silence


def test_one_tree_of_loggers_and_nothing_else_is_heard(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with caplog.at_level(logging.DEBUG, logger="slimfast"):
        thin = slimfast.slim(network(), EXAMPLE, macs=0.5)
        slimfast.save(thin, tmp_path / "thin.safetensors")
        slimfast.load(tmp_path / "thin.safetensors", network())
        pytest.importorskip("accelerate")
        slimfast.distill(thin, teacher=network(), train=batches(), epochs=1)
    ours = [record for record in caplog.records if record.name.startswith("slimfast")]
    assert {record.name.split(".")[1] for record in ours} >= {
        "spectra",
        "plans",
        "pruning",
        "checkpoints",
        "distillation",
    }
    assert {record.levelno for record in ours} <= {logging.DEBUG, logging.INFO}
    assert (list(root.handlers), root.level) == (handlers, level)
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("slimfast").handlers)
    assert capfd.readouterr() == ("", "")


# Threads


def test_threads_get_what_one_alone_gets() -> None:
    models = [network(seed) for seed in range(3)]
    tensors = [torch.randn(40, 30), torch.randn(7, 9, 3)]
    keeps = [{0: torch.arange(0, 40, 3), 1: torch.arange(5)}, {1: torch.tensor([0, 8])}]

    def work(index: int) -> tuple[str, bytes, bytes]:
        # Threads share models, too.
        model = models[index % len(models)]
        found = slimfast.plan(model, EXAMPLE, macs=0.5)
        thin = slimfast.prune_channels(model, found)
        gathered = slimfast.grouped_gather(tensors, keeps)
        return found.to_json(), whole(thin), b"".join(t.numpy().tobytes() for t in gathered)

    expected = [work(index) for index in range(3)]
    before = [whole(model) for model in models]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(work, range(18)))
    assert found == [expected[index % 3] for index in range(18)]
    assert [whole(model) for model in models] == before


# Processes


PROGRAM = """
import hashlib, sys, torch, slimfast
sys.path.insert(0, "tests")
from support.embedded import EXAMPLE, network
torch.set_num_threads(int(sys.argv[2]))
model = network()
plan = slimfast.plan(model, EXAMPLE, macs=0.5, multiple_of=2)
plan = slimfast.select(model, plan, method="pivoted_cholesky")
slimfast.save_spectra(slimfast.measure_spectra(model), sys.argv[1] + "/spectra.safetensors")
plan.save(sys.argv[1] + "/plan.json")
slimfast.save(slimfast.prune_channels(model, slimfast.Plan.load(sys.argv[1] + "/plan.json")),
              sys.argv[1] + "/thin.safetensors")
"""


def test_the_same_plan_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    digests = []
    for seed, threads in (("0", "1"), ("12345", "2"), ("777", "3")):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), threads],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
        )
        digests.append(
            {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        )
    assert set(digests[0]) == {"plan.json", "spectra.safetensors", "thin.safetensors"}
    assert digests[1:] == digests[:1] * 2


def test_json_of_a_plan_that_was_read_is_the_json_it_was_read_from() -> None:
    text = slimfast.plan(network(), EXAMPLE, macs=0.5).to_json()
    assert Plan.from_json(text).to_json() == text
