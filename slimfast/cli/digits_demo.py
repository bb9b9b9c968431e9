"""The whole road on a bare machine: a small residual network on the digit scans that scikit-learn ships.

Trained, calibrated with some scans, planned to a share of its MACs, pruned and distilled, beside a control of
uniform widths and equal MACs, as it is cut by the weights alone, that is distilled in the same way.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import nn

from slimfast.calibration import Calibration, calibrate, error_curves
from slimfast.checkpoints.exporting import export
from slimfast.checkpoints.thin_files import save
from slimfast.cli.digits import TEST, DigitNet, Scans, load_scans
from slimfast.distillation import DistillationLoss, accuracy, distill
from slimfast.graph import trace_channels
from slimfast.latency import measure_latency
from slimfast.plans import Plan, plan
from slimfast.plans.controls import uniform_like
from slimfast.plans.costs import count_module
from slimfast.plans.plan_table import quantity
from slimfast.pruning.prune import prune_channels
from slimfast.reports.plots import plan_figure, save_figure
from slimfast.storage.atomic import atomic_path, output_folder

MACS = 0.35
"""Share of the network's MACs that the demo keeps."""
TEACHER_EPOCHS, EPOCHS = 20, 8
CALIBRATION = 256
"""So many training scans, without their digits, say what the layers read."""
TIMED_IMAGES, TIMED_ROUNDS = 256, 15


@dataclass(frozen=True, slots=True)
class Row:
    """One network: accuracy on the test scans in [0, 1], size, and median milliseconds for a batch of 256."""

    name: str
    accuracy: float
    params: int
    macs: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo found, and what it was run with."""

    rows: tuple[Row, ...]
    seconds: float
    settings: Mapping[str, object]


def run_demo(
    folder: str | os.PathLike[str] = "demo",
    *,
    teacher_epochs: int = TEACHER_EPOCHS,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: bool | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Demo:
    """Run the demo, on one thread, and write into ``folder`` what it made and found.

    That is plan.json, thin.safetensors, thin.onnx, plan.png (spectra and widths) and demo.json (all figures).
    ``tell`` is given a line at each step, ``progress`` is that of :func:`slimfast.distillation.distill`.
    """
    folder = output_folder(folder)
    with _one_thread():
        return _run(folder, teacher_epochs, epochs, seed, progress, tell)


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What all trainings of the demo have in common."""

    train: Scans
    validation: Scans
    seed: int
    progress: bool | None

    def fit(
        self, network: nn.Module, teacher: nn.Module, epochs: int, loss: DistillationLoss, lr: float
    ) -> nn.Module:
        """Train a network in place, and put it in eval mode."""
        distill(
            network,
            teacher=teacher,
            train=self.train,
            evaluate=self.validation,
            epochs=epochs,
            lr=lr,
            loss=loss,
            seed=self.seed,
            progress=self.progress,
        )
        return network.eval()


def _run(
    folder: Path,
    teacher_epochs: int,
    epochs: int,
    seed: int,
    progress: bool | None,
    tell: Callable[[str], None],
) -> Demo:
    started = time.perf_counter()
    train, validation, test = load_scans()
    trainer = _Trainer(train, validation, seed, progress)
    example = test.images[:1]

    torch.manual_seed(seed)
    teacher = DigitNet()
    tell(f"training a residual network on {len(train.digits)} digit scans")
    # Hard labels only: nobody teaches the teacher.
    hard = DistillationLoss(soft=0.0, hard=1.0, label_smoothing=0.1)
    trainer.fit(teacher, nn.Identity(), teacher_epochs, hard, lr=0.1)

    tell(f"planning it to {MACS:.0%} of its MACs")
    graph = trace_channels(teacher, example)
    calibration = calibrate(teacher, graph, [train.images[:CALIBRATION]])
    curves = error_curves(teacher, graph, calibration)
    ours = plan(teacher, example, macs=MACS, calibration=calibration, curves=curves)
    uniform = uniform_like(ours, graph, {})
    networks: dict[str, nn.Module] = {"teacher": teacher}
    for name, widths, data in (("thin", ours, calibration), ("uniform", uniform, None)):
        tell(f"pruning and distilling: {name}")
        networks |= _thin_networks(name, teacher, widths, data, trainer, epochs)

    tell("measuring, writing")
    thin = networks["thin, distilled"]
    ours.save(folder / "plan.json")
    save(thin, folder / "thin.safetensors")
    export(thin, folder / "thin.onnx", example)
    save_figure(plan_figure(ours, curves), folder / "plan.png")
    rows = _measure(networks, test)
    settings = {
        "seed": seed,
        "teacher_epochs": teacher_epochs,
        "epochs": epochs,
        "macs": MACS,
        "calibration": CALIBRATION,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    demo = Demo(rows, time.perf_counter() - started, settings)
    with atomic_path(folder / "demo.json") as temporary:
        temporary.write_text(json.dumps(asdict(demo), indent=1) + "\n")
    return demo


def demo_table(demo: Demo) -> Table:
    """Show the networks of the demo side by side."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=f"accuracy on {TEST} test scans (one is {100 / TEST:.1f} %), latency of {TIMED_IMAGES}, "
        f"{demo.seconds:.0f} s in all",
    )
    table.add_column("network", no_wrap=True)
    for column in ("accuracy", "parameters", "MACs", "latency", "speed"):
        table.add_column(column, justify="right", no_wrap=True)
    whole = demo.rows[0]
    for row in demo.rows:
        table.add_row(
            row.name,
            f"{100 * row.accuracy:.1f} %",
            f"{quantity(row.params)} ({row.params / whole.params:.1%})",
            f"{quantity(row.macs)} ({row.macs / whole.macs:.1%})",
            f"{row.milliseconds:.1f} ms",
            f"{whole.milliseconds / row.milliseconds:.2f} x",
        )
    return table


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: layers this small gain little from a second, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _thin_networks(
    name: str,
    teacher: nn.Module,
    plan: Plan,
    calibration: Calibration | None,
    trainer: _Trainer,
    epochs: int,
) -> dict[str, nn.Module]:
    """Cut the network to a plan, and give it as it is cut and after its distillation."""
    pruned = prune_channels(teacher, plan, calibration=calibration)
    loss = DistillationLoss(temperature=4.0, soft=0.9, hard=0.1)
    distilled = trainer.fit(copy.deepcopy(pruned), teacher, epochs, loss, lr=0.05)
    return {f"{name}, pruned": pruned, f"{name}, distilled": distilled}


def _measure(networks: Mapping[str, nn.Module], test: Scans) -> tuple[Row, ...]:
    """Measure all networks on the test scans; latencies are taken in turn, so that what disturbs one disturbs
    all.
    """
    images = test.images[:TIMED_IMAGES]
    times = measure_latency(networks, images, repeats=TIMED_ROUNDS)
    rows = []
    for name, network in networks.items():
        cost = count_module(network, images[:1])
        rows.append(Row(name, accuracy(network, test), cost.params, cost.macs, 1000 * times[name].seconds))
    return tuple(rows)
