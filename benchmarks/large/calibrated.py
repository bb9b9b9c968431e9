"""Memory and cost of the calibrated road: ``python -m benchmarks.large.calibrated [--only GLOB]``.

Each row calibrates, plans and repairs in a process of its own, which has one thread: the most memory above
the model and its samples, and the processor time of each stage. Rows are written as they end; those that the
same commit has measured already are kept. ``--only 'samples*'`` chooses.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import slimfast
from benchmarks.markdown import NOT_MEASURED, NOT_YET, Table, rows_of
from benchmarks.ops import calibrated
from benchmarks.ops.spectra import high_water
from benchmarks.stamp import ROOT, stamp
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.storage.atomic import atomic_path

RESULTS = ROOT / "benchmarks" / "results" / "calibrated-large.json"
LIMIT = 2 << 30
STAGES = ("forward", "calibrate", "plan", "prune and repair")


@dataclass(frozen=True, slots=True)
class Load:
    """A network of ``benchmarks.ops.calibrated``, or a Llama of these sizes, and samples."""

    network: str
    samples: int
    size: int
    blocks: int = 0
    width: int = 0

    def made(self) -> tuple[Any, Any, list[Any]]:
        """The model, an example, and batches."""
        if self.blocks:
            return self._llama()
        calibrated.NETWORKS[self.network] = (self.samples, self.size)
        found = calibrated.network(self.network, "cpu")
        return found.model, found.example, found.batches

    def _llama(self) -> tuple[Any, Any, list[Any]]:
        prepare_torchvision()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=1024, hidden_size=self.width, intermediate_size=4 * self.width, use_cache=False,
            num_hidden_layers=self.blocks, num_attention_heads=self.width // 64,
        )  # fmt: skip
        tokens = torch.randint(1024, (self.samples, self.size))
        batches = [{"input_ids": part} for part in tokens.split(calibrated.BATCH)]
        return LlamaForCausalLM(config).eval(), {"input_ids": tokens[:2]}, batches


# What grows by steps of two, and what should grow with it: by how much at most for each step.
LOADS = {
    "memory: resnet50, 512 images of 224": Load("resnet50", 512, 224),
    "memory: decoder 135M, 128 x 1024 tokens": Load("decoder 135M", 128, 1024),
    **{f"samples: resnet50, {n} images of 96": Load("resnet50", n, 96) for n in (64, 128, 256, 512)},
    **{f"layers: {n} blocks of width 256": Load("llama", 64, 128, n, 256) for n in (2, 4, 8, 16)},
    **{f"channels: 4 blocks of width {n}": Load("llama", 64, 128, 4, n) for n in (128, 256, 512, 1024)},
}


def work(name: str) -> dict[str, Any]:
    """What the process of a row does: peak bytes, and seconds of each stage."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example, batches = LOADS[name].made()
    seconds = {}

    def timed(stage: str, start: float) -> None:
        seconds[stage] = time.process_time() - start

    start = time.process_time()
    with torch.no_grad():
        for batch in batches:
            calibrated.call(model, batch)
    timed("forward", start)
    graph = slimfast.trace_channels(model, example)
    before = high_water(reset=True)
    start = time.process_time()
    found = slimfast.calibrate(model, graph, batches, samples=LOADS[name].samples)
    timed("calibrate", start)
    start = time.process_time()
    plan = slimfast.plan(model, example, macs=calibrated.MACS, calibration=found)
    timed("plan", start)
    start = time.process_time()
    slimfast.prune_channels(
        model, plan, select="activations", repair="activations", calibration=found, verify=False
    )
    timed("prune and repair", start)
    return {"peak bytes": high_water() - before, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """A markdown table of all rows, measured or not, and a line on where."""
    rows = result.get("rows", {})
    lines = [["", *STAGES, "peak memory"], ["---", *["--:"] * (len(STAGES) + 1)]]
    for name in LOADS:
        row = rows.get(name)
        if row is None:
            lines.append([name, *[NOT_MEASURED] * (len(STAGES) + 1)])
            continue
        forward = row["seconds"]["forward"]
        others = [f"{row['seconds'][stage] / forward:.2f} forwards" for stage in STAGES[1:]]
        lines.append([name, f"{forward:.1f} s", *others, f"{row['peak bytes'] / 2**20:.0f} MiB"])
    if not rows:
        return f"{rows_of(lines)}\n\n{NOT_YET}\n"
    machine = result["stamp"]["machine"]
    return (
        f"{rows_of(lines)}\n\nProcessor time of one thread, one run a row; memory above the model and the "
        f"samples, at most {LIMIT >> 30} GiB wanted. {machine['cpu']} ({machine['isa']}), "
        f"{result['stamp']['date']}, commit {result['stamp']['commit']}, load {machine['load']}.\n"
    )


TABLES = (Table("calibrated-large", (RESULTS.name,), table),)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.calibrated", description=__doc__)
    parser.add_argument("--only", default="*", metavar="GLOB", help="rows of these names alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    made = stamp("cpu")
    earlier = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    rows = earlier["rows"] if earlier and earlier["stamp"]["commit"] == made["commit"] else {}
    over = 0
    for name in LOADS:
        if name in rows or not fnmatch.fnmatchcase(name, asked.only):
            continue
        command = [sys.executable, "-m", "benchmarks.large.calibrated", "--work", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {rows[name]}", flush=True)
        with atomic_path(asked.output) as beside:
            beside.write_text(json.dumps({"stamp": made, "rows": rows}, indent=1) + "\n")
        over += name.startswith("memory") and rows[name]["peak bytes"] > LIMIT
    return 1 if over else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(sys.argv[2])))
        sys.exit(0)
    sys.exit(main())
