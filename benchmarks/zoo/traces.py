"""How long a trace takes, and how many forwards: ``python -m benchmarks.zoo.traces [--only GLOB ...]``.

Networks of full size whose forwards are long or ask for values, detectors above all, and dense blocks of 50
to 400 layers, whose graph grows with the square of that. Each is traced in a process of its own, on one
thread; ``benchmarks/results/traces.json`` has a row each.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.markdown import NOT_YET, Table, rows_of
from benchmarks.run import RESULTS
from benchmarks.stamp import stamp
from benchmarks.zoo.detection_ops import prepare_detection_ops
from benchmarks.zoo.networks import build
from benchmarks.zoo.processes import Limits, run_limited, start_server
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.graph import trace_channels
from slimfast.plans.costs import CostModel
from slimfast.storage.atomic import atomic_path

IMAGE = 320
_MEMORY = int(20e9)

Built = tuple[nn.Module, Any]


class Dense(nn.Module):
    """A dense block: every layer reads what all layers before it have made."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8 + 4 * i, 4) for i in range(layers))
        self.head = nn.Linear(8 + 4 * layers, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], -1)
        made: Tensor = self.head(x)
        return made


def _dense(layers: int) -> Callable[[], Built]:
    return lambda: (Dense(layers), torch.randn(1, 8))


def _transformer(name: str, config: str, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        transformers = importlib.import_module("transformers")
        model = getattr(transformers, name)(getattr(transformers, config)(**options))
        return model, {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE)}

    return make


def _detector(name: str) -> Callable[[], Built]:
    def make() -> Built:
        prepare_detection_ops()
        detection = importlib.import_module("torchvision.models.detection")
        model = getattr(detection, name)(weights=None, weights_backbone=None)
        return model, ([torch.randn(3, IMAGE, IMAGE)],)

    return make


def _ultralytics(name: str) -> Callable[[], Built]:
    def make() -> Built:
        tasks = importlib.import_module("ultralytics.nn.tasks")
        kind = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else tasks.DetectionModel
        return kind(f"{name}.yaml", verbose=False), torch.randn(1, 3, IMAGE, IMAGE)

    return make


NETWORKS: Mapping[str, Callable[[], Built]] = {
    **{
        name: lambda name=name: build(f"timm:{name}")  # type: ignore[misc]
        for name in (
            "focalnet_tiny_srf",
            "swin_tiny_patch4_window7_224",
            "coatnet_0_rw_224",
            "maxvit_tiny_tf_224",
        )
    },
    "DETR": _transformer("DetrForObjectDetection", "DetrConfig", use_pretrained_backbone=False),
    "RT-DETR": _transformer("RTDetrForObjectDetection", "RTDetrConfig"),
    "Mask2Former": _transformer("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig"),
    "ultralytics rtdetr-l": _ultralytics("rtdetr-l"),
    "ultralytics yolov8n": _ultralytics("yolov8n"),
    **{
        name: _detector(name)
        for name in (
            "retinanet_resnet50_fpn",
            "fcos_resnet50_fpn",
            "fasterrcnn_mobilenet_v3_large_fpn",
            "ssdlite320_mobilenet_v3_large",
            "maskrcnn_resnet50_fpn",
            "keypointrcnn_resnet50_fpn",
        )
    },
    **{f"dense block of {layers}": _dense(layers) for layers in (50, 100, 200, 400)},
}


def trace(name: str, tell: Callable[[str, Any], None]) -> None:
    """Trace one network, and tell seconds, forwards and what was found."""
    prepare_torchvision()
    tell("build", None)
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    forwards, forward = [0], type(model).forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        forwards[0] += 1
        return forward(*args, **kwargs)

    type(model).forward = counted  # type: ignore[method-assign]
    tell("trace", None)
    start = time.process_time()
    graph = trace_channels(model.eval(), example)
    seconds = time.process_time() - start
    start = time.process_time()
    CostModel(graph)
    costs = time.process_time() - start
    found = {"groups": len(graph), "operations": len(graph.operations), "costs_s": round(costs, 3)}
    tell("trace", {"seconds": round(seconds, 3), "forwards": forwards[0], **found})


def table(results: Mapping[str, Any]) -> str:
    """The seconds and forwards of each network; what failed says why."""
    rows = results.get("networks", {})
    if not rows:
        return f"{NOT_YET}\n"
    lines: list[Sequence[str]] = [("", "operations", "groups", "forwards", "seconds"), ["---", *["--:"] * 4]]
    for name, row in rows.items():
        told = row.get("trace") or row.get("build") or {}
        values = [str(told.get(key, "-")) for key in ("operations", "groups", "forwards")]
        lines.append([name, *values, f"{told['seconds']:.2f}" if "seconds" in told else told["failed"]])
    made = results["stamp"]
    where = f"{made['machine']['cpu']}, one thread, load {made['machine']['load']:g} at the start"
    versions = f"torch {made['versions']['torch']}, {made['date']}, commit {made['commit']}"
    return f"{rows_of(lines)}\n\nProcessor seconds of one run each; {where}; {versions}.\n"


TABLES = (Table("traces", ("traces.json",), table),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace the networks that are asked for, one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo.traces", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="GLOB", help="only networks of these names"
    )
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds of each process")
    parser.add_argument("--results", type=Path, default=RESULTS / "traces.json", help="where the results go")
    options = parser.parse_args(arguments)
    known = json.loads(options.results.read_text())["networks"] if options.results.exists() else {}
    made = stamp("cpu")
    start_server()
    for name in NETWORKS:
        if not any(fnmatch.fnmatchcase(name, glob) for glob in options.only):
            continue
        known[name] = run_limited(trace, (name,), Limits(options.limit_s, _MEMORY, 1))
        print(f"{name}: {known[name]}", flush=True)
        ordered = {network: known[network] for network in NETWORKS if network in known}
        with atomic_path(options.results) as beside:
            beside.write_text(json.dumps({"stamp": made, "networks": ordered}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
