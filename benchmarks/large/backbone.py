"""A decoder too large for memory, measured from its shards: ``python -m benchmarks.large.backbone FOLDER``.

Synthetic bf16 shards of the real shapes of Llama 3 8B are generated into FOLDER, one at a time (16 GB;
``--size 1b`` has one block of the 32 and one embedding, 1.5 GB). A process of its own measures the spectrum
and the widths of every layer, with its peak memory; another is killed three times at random moments, goes on
from its sidecar, and must end with the same. Then the streaming road is compared with the in-memory one on a
model that fits, in turn in one process. The result is written only if all of that is so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.large.decoder import FITS, SIZES, generate
from benchmarks.markdown import Table
from benchmarks.stamp import ROOT, stamp
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.spectra.records import encode
from slimfast.storage.atomic import atomic_path
from slimfast.storage.prefetch import read_ahead
from slimfast.storage.weights import open_weights

TAUS = (0.5, 0.8, 0.9, 0.95, 0.99)
KILLS = 3
ROUNDS = 5
# Beside the largest layer's parameters and its workspace: the interpreter, PyTorch, a batch of small layers.
ALLOWANCE = 1 << 30


def measure(index: Path, output: Path, sidecar: Path | None) -> None:
    """What a process of its own does: spectra and widths, with how long it took and its peak memory."""
    start = time.perf_counter()

    def progress(done: int, total: int) -> None:
        print(f"{done}/{total} layers, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    spectra = measure_spectra(index, progress=progress, resume=sidecar)
    found = {
        "seconds": time.perf_counter() - start,
        "peak_rss": peak_rss(),
        "widths": {name: [s.width(explained_variance=tau) for tau in TAUS] for name, s in spectra.items()},
        "digest": digest(spectra),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(found))


def peak_rss() -> int:
    """The most memory this process has had resident, in bytes.

    Not ``ru_maxrss``, which begins at the peak of the process that started this one.
    """
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def digest(spectra: dict[str, Spectrum]) -> str:
    """SHA-256 of all fields of all spectra, in order."""
    return hashlib.sha256(b"".join(encode(s, {}) for s in spectra.values())).hexdigest()


def bound(index: Path) -> dict[str, int]:
    """The largest layer's bytes, its (m, m) workspace in float64, and what the peak memory may be."""
    infos = open_weights(index).infos.values()
    layers = [info for info in infos if len(info.shape) > 1 and info.dtype is not None]
    sizes = [math.prod(info.shape) * info.dtype.itemsize for info in layers if info.dtype is not None]
    work = [8 * min(info.shape[0], math.prod(info.shape[1:])) ** 2 for info in layers]
    largest = max(a + b for a, b in zip(sizes, work, strict=True))
    return {"largest_layer_and_workspace": largest, "limit": largest + ALLOWANCE}


def killed(index: Path, folder: Path, seconds: float, seed: int) -> tuple[dict[str, Any], list[Any]]:
    """The result of a run that was killed :data:`KILLS` times, and each time when and with what on disk."""
    sidecar, output = folder / "sidecar", folder / "resumed.json"
    kills: list[Any] = []
    chance = random.Random(seed)
    for _ in range(KILLS):
        before = _size(sidecar)
        child = _child(index, output, sidecar)
        while child.poll() is None and _size(sidecar) == before:
            time.sleep(0.01)
        # From its first sign of life on.
        after = chance.uniform(0.0, seconds / KILLS)
        with suppress(subprocess.TimeoutExpired):
            child.wait(after)
        child.kill()
        kills.append({"after": round(after, 1), "status": child.wait(), "sidecar_bytes": _size(sidecar)})
    if _child(index, output, sidecar).wait():
        raise SystemExit("backbone: the resumed run failed")
    return json.loads(output.read_text()), kills


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _child(index: Path, output: Path, sidecar: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.large.backbone", "--measure", str(index), str(output)]
    return subprocess.Popen([*command, *([str(sidecar)] if sidecar else [])], cwd=ROOT)


def throughput(index: Path, rounds: int) -> dict[str, Any]:
    """Seconds from disk, of weights in memory, and of reading them into memory first; medians, in turn."""
    weights = open_weights(index)
    roads: dict[str, list[float]] = {"streaming": [], "in_memory": [], "load_then_measure": []}
    tensors = {name: weights.load(name).clone() for name in weights.infos}
    for _ in range(rounds):
        for road, times in roads.items():
            start = time.perf_counter()
            if road == "streaming":
                measure_spectra(index)
            elif road == "in_memory":
                measure_spectra(tensors)
            else:
                measure_spectra({name: weights.load(name).clone() for name in read_all(index)})
            times.append(time.perf_counter() - start)
    middle = {road: statistics.median(times) for road, times in roads.items()}
    ratios = [b / a for a, b in zip(roads["streaming"], roads["in_memory"], strict=True)]
    return {
        "bytes": sum(t.nbytes for t in tensors.values()),
        "seconds": middle,
        "of_in_memory": statistics.median(ratios),
    }


def read_all(index: Path) -> Iterator[str]:
    """The names of the tensors, each once it has been read."""
    weights = open_weights(index)
    return read_ahead(list(weights.infos), weights, lambda name: [name])


def table(result: dict[str, Any]) -> str:
    """A markdown table of a result, and a line on where it was measured."""
    if not result:
        return "not measured\n"
    size, throughput, machine = result["settings"], result["throughput"], result["stamp"]["machine"]
    peak, limit = result["peak_rss"] / 2**30, result["limit"] / 2**30
    largest = f"{size['vocabulary']} x {size['hidden']}"
    killed_after = ", ".join(f"{kill['after']:g}" for kill in result["kills"])
    rows = [
        ("Shards", f"{size['bytes'] / 1e9:.2f} GB, {result['layers']} layers up to {largest}"),
        ("Spectra and widths of every layer", f"{result['seconds']:.0f} s"),
        ("Peak resident memory, of its limit", f"{peak:.2f} GiB of {limit:.2f} GiB"),
        ("Killed", f"{killed_after} s after the first sign of life, then the same spectra bit for bit"),
        (
            f"From disk beside in memory, {throughput['bytes'] / 1e9:.1f} GB",
            f"{throughput['of_in_memory']:.0%} of the throughput",
        ),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    where = f"{machine['cpu']}, {machine['threads']} threads, load {machine['load']}"
    return "\n".join([*lines, "", f"Measured on {where}, at {result['stamp']['commit']}."]) + "\n"


TABLES = tuple(Table(f"backbone-{size}", (f"backbone-{size}.json",), table) for size in SIZES)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.backbone", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards are generated, and kept")
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which the run is killed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the comparison of the two roads")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/backbone-SIZE.json")
    asked = parser.parse_args(arguments)
    index = generate(SIZES[asked.size], asked.folder / asked.size)
    size = sum(path.stat().st_size for path in index.parent.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB of shards in {index.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "whole.json"
        if _child(index, output, None).wait():
            return 1
        whole = json.loads(output.read_text())
        resumed, kills = killed(index, Path(folder), whole["seconds"], asked.seed)
    limits = bound(index)
    result = {
        "benchmark": "backbone",
        "settings": {"size": asked.size, **asdict(SIZES[asked.size]), "bytes": size, "taus": TAUS},
        "stamp": stamp("cpu"),
        "layers": len(whole["widths"]),
        "seconds": round(whole["seconds"], 2),
        "peak_rss": whole["peak_rss"],
        "peak_rss_resumed": resumed["peak_rss"],
        **limits,
        "kills": kills,
        "digest": whole["digest"],
        "throughput": throughput(generate(FITS, asked.folder / "fits"), asked.rounds),
        "widths": whole["widths"],
    }
    problems = [
        text
        for text, wrong in (
            ("the resumed run gave other spectra", resumed["digest"] != whole["digest"]),
            ("the resumed run gave other widths", resumed["widths"] != whole["widths"]),
            ("peak memory above its limit", max(whole["peak_rss"], resumed["peak_rss"]) > limits["limit"]),
            ("no run was killed", all(kill["status"] != -signal.SIGKILL for kill in kills)),
        )
        if wrong
    ]
    if problems:
        print(f"backbone: {'; '.join(problems)}", file=sys.stderr)
        return 1
    target = asked.output or ROOT / "benchmarks" / "results" / f"backbone-{asked.size}.json"
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "widths"}, indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        paths = [Path(argument) for argument in sys.argv[2:]]
        measure(paths[0], paths[1], paths[2] if len(paths) > 2 else None)
    else:
        sys.exit(main())
