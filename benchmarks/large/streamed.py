"""Calibration, error curves and repair of a decoder from its shards: ``python -m benchmarks.large.streamed
FOLDER``.

Synthetic bf16 shards are generated into FOLDER (``--size 1b`` has one block of Llama 3 8B and its
embedding). A process of its own goes the whole road, calibration, plan and pruning with repair, each stage
with its seconds and the peak memory up to its end. Another is killed in the calibration and in the repair,
goes on, and must end with the same thin tensors. The result is written only if they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.large.backbone import ALLOWANCE, peak_rss
from benchmarks.large.decoder import FITS, SIZES, Decoder, generate
from benchmarks.large.scaling import model_of
from benchmarks.markdown import Table
from benchmarks.stamp import ROOT, stamp
from slimfast.calibration import load_calibration
from slimfast.calibration.consumers import LARGEST
from slimfast.checkpoints import calibrate_checkpoint, plan_checkpoint, prune_checkpoint
from slimfast.graph import trace_channels
from slimfast.storage.atomic import atomic_path
from slimfast.storage.weights import open_weights

ROADS = {**SIZES, "fits": FITS}
# Of the layers done in a stage, when a run is killed.
KILLED_AT = 0.5


def road(decoder: Decoder, index: Path, folder: Path, samples: int, length: int, kill: str) -> dict[str, Any]:
    """Go the road in this process; with ``kill`` it ends in the middle of that stage."""
    model = model_of(decoder)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(decoder.vocabulary, (samples, length), generator=generator)
    graph = trace_channels(model, tokens)
    found: dict[str, Any] = {"seconds": {}, "peak_rss": {}}

    def timed(stage: str, work: Callable[[Any], Any]) -> Any:
        def progress(done: int, total: int) -> None:
            print(f"{stage}: {done}/{total}", file=sys.stderr, flush=True)
            if stage == kill and done >= KILLED_AT * total:
                signal.raise_signal(signal.SIGKILL)

        start = time.perf_counter()
        made = work(progress)
        found["seconds"][stage] = round(time.perf_counter() - start, 2)
        found["peak_rss"][stage] = peak_rss()
        return made

    state, thin = folder / "state", folder / "thin"
    timed(
        "calibrate",
        lambda progress: calibrate_checkpoint(index, model, graph, drawn.split(1), state, progress=progress),
    )
    calibration = load_calibration(state)
    plan = timed(
        "plan",
        lambda progress: plan_checkpoint(
            index, model, tokens, calibration=calibration, params=0.7, exclude=["head_dim"], progress=progress
        ),
    )
    timed(
        "repair",
        lambda progress: prune_checkpoint(
            index, plan, thin, model=model, calibration=calibration, repair="activations", progress=progress
        ),
    )
    found["digest"] = digest(thin)
    return found


def digest(folder: Path) -> str:
    """SHA-256 of the thin tensors, in order."""
    weights, found = open_weights(folder / "model.safetensors.index.json"), hashlib.sha256()
    for name in weights.infos:
        found.update(weights.load(name).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def bound(decoder: Decoder) -> int:
    """What the peak memory may be: the largest weight in float32, the largest moments, and 1 GiB."""
    largest = max(decoder.vocabulary, decoder.intermediate) * decoder.hidden * 4
    read = max(length for length in (decoder.hidden, decoder.intermediate) if 8 * length**2 <= LARGEST)
    return largest + 8 * read**2 + ALLOWANCE


def table(result: dict[str, Any]) -> str:
    """A markdown table of a result, and a line on where it was measured."""
    if not result:
        return "not measured\n"
    settings, machine = result["settings"], result["stamp"]["machine"]
    lines = ["| stage | seconds | peak resident memory |", "|---|--:|--:|"]
    for stage, seconds in result["seconds"].items():
        lines.append(f"| {stage} | {seconds:.0f} | {result['peak_rss'][stage] / 2**30:.2f} GiB |")
    said = (
        f"{settings['bytes'] / 1e9:.2f} GB of shards, {settings['samples']} samples of {settings['length']} "
        f"tokens. The largest weight, the largest moments and 1 GiB are {result['limit'] / 2**30:.2f} GiB. "
        f"Killed in {' and in '.join(result['killed'])}, then the same thin tensors bit for bit."
    )
    where = f"{machine['cpu']}, {machine['threads']} threads, load {machine['load']}"
    return "\n".join([*lines, "", said, f"Measured on {where}, at {result['stamp']['commit']}."]) + "\n"


TABLES = tuple(Table(f"streamed-{size}", (f"streamed-{size}.json",), table) for size in ("fits",))


def _child(arguments: argparse.Namespace, folder: Path, kill: str) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.large.streamed",
        str(arguments.folder),
        "--size",
        arguments.size,
    ]
    command += ["--samples", str(arguments.samples), "--length", str(arguments.length)]
    return subprocess.run([*command, "--road", str(folder), "--kill", kill], cwd=ROOT, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.streamed", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards are generated, and kept")
    parser.add_argument("--size", choices=ROADS, default="1b")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--kill", default="", help=argparse.SUPPRESS)
    parser.add_argument("--road", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/streamed-SIZE.json")
    asked = parser.parse_args(arguments)
    decoder = ROADS[asked.size]
    index = generate(decoder, asked.folder / asked.size)
    if asked.road is not None:
        found = road(decoder, index, asked.road, asked.samples, asked.length, asked.kill)
        with atomic_path(asked.road / "result.json") as temporary:
            temporary.write_text(json.dumps(found))
        return 0
    results, killed = [], []
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        for name, kills in (("whole", ("",)), ("killed", ("calibrate", "repair", ""))):
            folder = Path(place) / name
            folder.mkdir()
            for kill in kills:
                status = _child(asked, folder, kill)
                if status != (-signal.SIGKILL if kill else 0):
                    print(f"streamed: expected another end of {name} {kill}, got {status}", file=sys.stderr)
                    return 1
                killed += [kill] if kill else []
            results.append(json.loads((folder / "result.json").read_text()))
    if results[0]["digest"] != results[1]["digest"]:
        print("streamed: the run that went on gave other tensors", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in index.parent.glob("*.safetensors"))
    settings = {"size": asked.size, **asdict(decoder), "bytes": size}
    result = {
        "benchmark": "streamed",
        "settings": {**settings, "samples": asked.samples, "length": asked.length},
        "stamp": stamp("cpu"),
        **results[0],
        "killed": killed,
        "limit": bound(decoder),
    }
    target = asked.output or ROOT / "benchmarks" / "results" / f"streamed-{asked.size}.json"
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
