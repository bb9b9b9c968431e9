"""The whole road on a bare machine: a small residual network on the digit scans that scikit-learn ships.

Trained, planned to a share of its MACs, pruned and distilled, beside a control of uniform widths and equal
MACs that is pruned and distilled in the same way.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from slimfast.checkpoints.thin_files import export, save
from slimfast.distillation import DistillationLoss, accuracy, distill
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans import Plan, plan
from slimfast.plans.controls import uniform_like
from slimfast.plans.costs import count_module
from slimfast.plans.plan_text import quantity
from slimfast.pruning.prune import prune_channels
from slimfast.reports.plots import plan_figure, save_figure
from slimfast.spectra import measure_spectra
from slimfast.storage.atomic import atomic_path, output_folder

MACS = 0.35
"""Share of the network's MACs that the demo keeps."""
TRAIN, TEST = 1000, 500
"""Of the 1797 scans; the rest are for validation."""
TIMED_IMAGES, TIMED_ROUNDS = 256, 15


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            projection = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for scans of 8 x 8 pixels: (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(Block(16, 16, 1), Block(16, 16, 1)),
            nn.Sequential(Block(16, 32, 2), Block(32, 32, 1)),
            nn.Sequential(Block(32, 64, 2), Block(64, 64, 1)),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.stages(self.stem(x)).mean(dim=(2, 3))
        logits: Tensor = self.head(out)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Scans:
    """Digit scans (N, 1, 8, 8) in [-1, 1] with their digits (N,), to iterate over in batches.

    With ``shift``, batches are shuffled anew at each pass by torch's global generator, the incomplete last
    one is left out, and each is moved by up to ``shift`` pixels.
    """

    images: Tensor
    digits: Tensor
    batch: int = 64
    shift: int = 0

    def __len__(self) -> int:
        return len(self.digits) // self.batch if self.shift else -(-len(self.digits) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = (
            torch.randperm(len(self.digits), device="cpu")
            if self.shift
            else torch.arange(len(self.digits), device="cpu")
        )
        for step in range(len(self)):
            chosen = order[step * self.batch : (step + 1) * self.batch]
            images = self.images[chosen]
            if self.shift:
                down, right = torch.randint(2 * self.shift + 1, (2,), device="cpu").tolist()
                padded = functional.pad(images, (self.shift,) * 4, value=-1.0)
                images = padded[:, :, down : down + 8, right : right + 8]
            yield images, self.digits[chosen]


def load_scans() -> tuple[Scans, Scans, Scans]:
    """The scans as (train, validation, test), always the same ones."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SlimfastError("the demo needs scikit-learn: pip install 'slimfast[demo]'") from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    digits = torch.tensor(bunch.target, dtype=torch.int64, device="cpu")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0), device="cpu")
    train, validation, test = order[:TRAIN], order[TRAIN:-TEST], order[-TEST:]
    return (
        Scans(images[train], digits[train], shift=1),
        Scans(images[validation], digits[validation]),
        Scans(images[test], digits[test]),
    )


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
    teacher_epochs: int = 30,
    epochs: int = 30,
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
    example = test.images[:1]

    torch.manual_seed(seed)
    teacher = DigitNet()
    tell(f"training a residual network on {len(train.digits)} digit scans")
    # Hard labels only: nobody teaches the teacher.
    distill(
        teacher,
        teacher=nn.Identity(),
        train=train,
        evaluate=validation,
        epochs=teacher_epochs,
        lr=0.1,
        loss=DistillationLoss(soft=0.0, hard=1.0, label_smoothing=0.1),
        seed=seed,
        progress=progress,
    )
    teacher.eval()

    tell(f"planning it to {MACS:.0%} of its MACs")
    graph = trace_channels(teacher, example)
    spectra = measure_spectra(teacher, graph)
    ours = plan(teacher, example, macs=MACS, spectra=spectra)
    uniform = uniform_like(ours, graph, spectra)
    networks: dict[str, nn.Module] = {"teacher": teacher}
    for name, widths in (("thin", ours), ("uniform", uniform)):
        tell(f"pruning and distilling: {name}")
        networks |= _thin_networks(name, teacher, widths, train, validation, epochs, seed, progress)

    tell("measuring, writing")
    thin = networks["thin, distilled"]
    ours.save(folder / "plan.json")
    save(thin, folder / "thin.safetensors")
    export(thin, folder / "thin.onnx", example)
    save_figure(plan_figure(ours, spectra), folder / "plan.png")
    rows = _measure(networks, test)
    settings = {
        "seed": seed,
        "teacher_epochs": teacher_epochs,
        "epochs": epochs,
        "macs": MACS,
        "explained_variance": ours.explained_variance,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }
    demo = Demo(rows, time.perf_counter() - started, settings)
    with atomic_path(folder / "demo.json") as temporary:
        temporary.write_text(json.dumps(asdict(demo), indent=1) + "\n")
    return demo


def demo_table(demo: Demo) -> Table:
    """The networks of the demo side by side."""
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
    """Layers this small gain little from a second thread, and lose much on a busy machine."""
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
    train: Scans,
    validation: Scans,
    epochs: int,
    seed: int,
    progress: bool | None,
) -> dict[str, nn.Module]:
    """The network of a plan as it is cut, and after its distillation."""
    pruned = prune_channels(teacher, plan)
    student = prune_channels(teacher, plan, verify=False)
    distill(
        student,
        teacher=teacher,
        train=train,
        evaluate=validation,
        epochs=epochs,
        lr=0.1,
        loss=DistillationLoss(temperature=4.0, soft=0.9, hard=0.1),
        seed=seed,
        progress=progress,
    )
    return {f"{name}, pruned": pruned, f"{name}, distilled": student.eval()}


def _measure(networks: Mapping[str, nn.Module], test: Scans) -> tuple[Row, ...]:
    """All networks on the test scans; latencies are taken in turn, so that what disturbs one disturbs all."""
    images = test.images[:TIMED_IMAGES]
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        # The first rounds pay for warming up.
        for round_ in range(3 + TIMED_ROUNDS):
            for name, network in networks.items():
                start = time.perf_counter()
                network(images)
                if round_ >= 3:
                    times[name].append(1000 * (time.perf_counter() - start))
    rows = []
    for name, network in networks.items():
        cost = count_module(network, images[:1])
        rows.append(
            Row(name, accuracy(network, test), cost.params, cost.macs, statistics.median(times[name]))
        )
    return tuple(rows)
