"""One plan by several processes: ``python -m benchmarks.large.scaling FOLDER``.

Processes of one thread each, which meet through gloo, measure the shards of a synthetic decoder and plan it;
each number of processes must come to the same plan, byte for byte. Rounds are in turn. Then one of two
processes is killed, and the other must end within 30 seconds and name it. The result is written only if all
of that is so. More processes than cores cannot be faster than as many as there are cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.large.decoder import FITS, Decoder, generate
from benchmarks.markdown import Table
from benchmarks.stamp import ROOT, stamp
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.checkpoints.streamed import without_weights
from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.distributed.team import join_team
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.spectra import measure_spectra
from slimfast.storage.atomic import atomic_path

PROCESSES = (1, 2, 4)
ROUNDS = 3
# Seconds after which the others of a process that died must have ended.
LIMIT = 30.0
SIZES = {
    "fits": FITS,
    # To try the benchmark itself.
    "tiny": Decoder(2, 128, 256, 64, 512, tied=True),
}
_HEAD = 32


def model_of(decoder: Decoder) -> torch.nn.Module:
    """The stock decoder of these sizes, without values of its parameters."""
    prepare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=decoder.vocabulary,
        hidden_size=decoder.hidden,
        intermediate_size=decoder.intermediate,
        num_hidden_layers=decoder.blocks,
        num_attention_heads=decoder.hidden // _HEAD,
        num_key_value_heads=decoder.key_values // _HEAD,
        tie_word_embeddings=decoder.tied,
        use_cache=False,
    )
    with without_weights():
        return LlamaForCausalLM(config).eval()


def work(size: str, index: Path, output: Path, *, die: bool) -> int:
    """What each process does: the plan, its hash, and the seconds of the spectra and of all."""
    torch.set_num_threads(1)
    model, ids = model_of(SIZES[size]), torch.zeros(1, 8, dtype=torch.int64)

    def progress(done: int, total: int) -> None:
        if die:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.distributed.init_process_group("gloo")
    try:
        with join_team() as team:
            start = time.perf_counter()
            graph = trace_channels(model, ids)
            traced = time.perf_counter()
            spectra = measure_spectra(index, graph, team=team, progress=progress)
            measured = time.perf_counter()
            plan = plan_checkpoint(index, model, ids, spectra=spectra, team=team, params=0.5)
            end = time.perf_counter()
            rank = team.rank
    except SlimfastError as error:
        print(error, file=sys.stderr)
        return 2
    torch.distributed.destroy_process_group()
    found = {
        "plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "groups": len(plan.groups),
        "spectra": measured - traced,
        "all": end - start,
    }
    with atomic_path(output.with_name(f"{output.name}.{rank}")) as temporary:
        temporary.write_text(json.dumps(found))
    return 0


def launch(processes: int, size: str, index: Path, output: Path, *, dies: int = -1) -> list[Any]:
    """That many processes, started; ``dies``: the rank that is to be killed after its first layer."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.large.scaling", "--work", size, str(index), str(output)]
    return [
        subprocess.Popen(
            [*command, *(["die"] if rank == dies else [])],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def measure(processes: int, size: str, index: Path, folder: Path) -> list[dict[str, Any]]:
    """What each of that many processes found."""
    output = folder / f"{processes}"
    children = launch(processes, size, index, output)
    errors = [child.communicate()[1] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"scaling: {processes} processes failed: {' '.join(errors)}")
    return [json.loads(output.with_name(f"{output.name}.{r}").read_text()) for r in range(processes)]


def killed(size: str, index: Path, folder: Path) -> dict[str, Any]:
    """How long the first of two processes goes on after the second was killed, and what it says."""
    survivor, dead = launch(2, size, index, folder / "killed", dies=1)
    dead.communicate()
    start = time.perf_counter()
    _, text = survivor.communicate()
    lines = [line for line in text.splitlines() if line]
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "status": survivor.returncode,
        "killed": dead.returncode,
        "says": lines[-1] if lines else "",
    }


def table(result: dict[str, Any]) -> str:
    """A markdown table of a result, and a line on where it was measured."""
    if not result:
        return "not measured\n"
    machine, killed = result["stamp"]["machine"], result["killed"]
    lines = ["| Processes | spectra | times one process | plan, all in all |", "|--:|--:|--:|--:|"]
    first = result["runs"][0]["spectra"]
    for run in result["runs"]:
        lines.append(
            f"| {run['processes']} | {run['spectra']:.1f} s | {first / run['spectra']:.2f} x | "
            f"{run['all']:.1f} s |"
        )
    size = result["settings"]["bytes"] / 1e9
    return "\n".join(
        [
            *lines,
            "",
            f"{size:.2f} GB of shards, {result['groups']} groups, the same plan every time, byte for byte; "
            f"{result['cores']} cores, one thread a process, median of {result['settings']['rounds']}. "
            f"One of two processes killed: the other named it and ended after {killed['seconds']:g} s.",
            "",
            f"Measured on {machine['cpu']}, load {machine['load']}, at {result['stamp']['commit']}.",
            "",
        ]
    )


TABLES = (Table("scaling-processes", ("scaling.json",), table),)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large.scaling", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards are generated, and kept")
    parser.add_argument("--size", choices=SIZES, default="fits")
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "scaling.json")
    asked = parser.parse_args(arguments)
    where = stamp("cpu")
    index = generate(SIZES[asked.size], asked.folder / asked.size)
    rounds: dict[int, list[dict[str, Any]]] = {count: [] for count in asked.processes}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            for count, found in rounds.items():
                found += measure(count, asked.size, index, Path(folder))
                print(f"{count} processes: {found[-1]['spectra']:.1f} s", file=sys.stderr)
        death = killed(asked.size, index, Path(folder))
    plans = {run["plan"] for found in rounds.values() for run in found}
    result = {
        "benchmark": "scaling",
        "settings": {
            "size": asked.size,
            **asdict(SIZES[asked.size]),
            "bytes": sum(path.stat().st_size for path in index.parent.glob("*.safetensors")),
            "rounds": asked.rounds,
        },
        "stamp": where,
        "cores": os.cpu_count(),
        "runs": [
            {
                "processes": count,
                "spectra": round(statistics.median(run["spectra"] for run in found), 3),
                "all": round(statistics.median(run["all"] for run in found), 3),
            }
            for count, found in rounds.items()
        ],
        "groups": rounds[asked.processes[0]][0]["groups"],
        "plan": min(plans),
        "killed": death,
    }
    problems = [
        text
        for text, wrong in (
            ("not all plans are the same", len(plans) > 1),
            ("the process to be killed was not", death["killed"] != -signal.SIGKILL),
            (f"the other did not name it: {death['says']}", not death["says"].startswith("rank 1 (")),
            (f"it ended after {death['seconds']} s", death["seconds"] > LIMIT or death["status"] != 2),
        )
        if wrong
    ]
    if problems:
        print(f"scaling: {'; '.join(problems)}", file=sys.stderr)
        return 1
    with atomic_path(asked.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        _, _, size, index, output, *die = sys.argv
        sys.exit(work(size, Path(index), Path(output), die=bool(die)))
    sys.exit(main())
