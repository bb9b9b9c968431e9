"""Several processes measure together: the same spectra in all of them, and a name for who is missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed import HashStore

from slimfast.distributed import team as distributed
from slimfast.distributed.team import Team, share_out
from slimfast.errors import SlimfastError

# A guard against hanging, not a measurement: a process imports torch on a machine that may be busy.
PATIENCE = 120


@given(st.lists(st.floats(0, 1e9), max_size=30), st.integers(1, 8))
def test_every_task_is_shared_out_once_and_evenly(costs: list[float], size: int) -> None:
    shares = share_out(costs, size)
    assert sorted(task for share in shares for task in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[task] for task in share) for share in shares]
    # Largest first: a rank that is ahead of the mean is so by its last task, which is no larger than others.
    assert max(loads) <= (sum(costs) / size + max(costs, default=0.0)) * (1 + 1e-9)


def test_the_largest_task_comes_first() -> None:
    assert share_out([1, 1, 1, 3], 2) == [[3], [0, 1, 2]]
    assert share_out([2, 2, 2], 2) == [[0, 2], [1]]


# Imports once, then forks the ranks; prints (exit status, output) of each.
LAUNCH = """
import hashlib, json, os, signal, sys
import torch
from slimfast.distributed import join_team
from slimfast.errors import SlimfastError
from slimfast.spectra import eigenvalues, measure_spectra
from slimfast.spectra.records import encode

eigenvalues.BATCH_BYTES = 1
size, port, path, what, side, folder = sys.argv[1:]


def work(rank):
    done = []

    def progress(at, total):
        done.append(at)
        if what == f"kill {rank}" and at == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == f"stop {rank}" and at == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == f"raise {rank}" and at == 2:
            raise ValueError("no more")

    if what == "gloo":
        torch.distributed.init_process_group("gloo")
    try:
        with join_team(timeout=4) as team:
            found = measure_spectra(
                path, taus=(0.5, 0.9), scaling="unit", progress=progress, team=team, resume=side or None
            )
    except SlimfastError as error:
        print(f"SlimfastError: {error}")
        return 2
    if what == "gloo":
        torch.distributed.destroy_process_group()
    text = hashlib.sha256(b"".join(encode(s, {"at": n}) for n, s in found.items())).hexdigest()
    print(len(done), text, list(found)[:2])
    return 0


children = []
for rank in range(int(size)):
    child = os.fork()
    if child == 0:
        sys.stdout = open(f"{folder}/{rank}", "w")
        os.environ |= dict(RANK=str(rank), WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        status = 1
        try:
            status = work(rank)
        finally:
            sys.stdout.flush()
            os._exit(status)
    children.append(child)
left = set(children)
statuses = {}
while left:
    child, status = os.wait()
    left.discard(child)
    statuses[child] = os.waitstatus_to_exitcode(status)
    # A stopped process can only be killed, which the others have noticed by now.
    if what.startswith("stop") and len(left) == 1:
        os.kill(*left, signal.SIGKILL)
outputs = [open(f"{folder}/{rank}").read().strip() for rank in range(int(size))]
print(json.dumps([[statuses[child], output] for child, output in zip(children, outputs)]))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(size: int, path: Path, what: str = "", side: str = "") -> list[tuple[int, str]]:
    """(exit status, output) of every rank."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, str(size), str(free_port()), str(path), what, side, folder],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    return [(status, text) for status, text in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("model") / "w.safetensors"
    save_file({f"layer{i}": torch.randn(12 + i, 40 - i) for i in range(12)}, found)
    return found


@pytest.fixture(scope="module")
def alone(path: Path) -> str:
    """What a process that is alone prints after the number of layers it measured."""
    ((status, text),) = launch(1, path)
    assert status == 0, text
    assert text.startswith("12 ")
    return text.removeprefix("12 ")


@pytest.mark.parametrize(("size", "what"), [(2, "gloo"), (4, "")])
def test_every_rank_ends_with_the_spectra_of_one_process(
    path: Path, alone: str, size: int, what: str, tmp_path: Path
) -> None:
    found = launch(size, path, what, str(tmp_path / "side"))
    assert [status for status, _ in found] == [0] * size, found
    assert {text.partition(" ")[2] for _, text in found} == {alone}
    counts = [int(text.partition(" ")[0]) for _, text in found]
    assert sum(counts) == 12
    assert min(counts) >= 1


def test_ranks_go_on_from_their_sidecars(path: Path, alone: str, tmp_path: Path) -> None:
    side = str(tmp_path / "side")
    launch(2, path, "kill 1", side)
    found = launch(2, path, "", side)
    assert {text.partition(" ")[2] for _, text in found} == {alone}
    counts = [int(text.partition(" ")[0]) for _, text in found]
    # The survivor had measured its share, of the killed one a layer was missing at most.
    assert 1 <= sum(counts) < 12


@pytest.mark.parametrize(("how", "dead"), [("kill", 0), ("kill", 1), ("stop", 1)])
def test_a_rank_without_a_sign_of_life_is_named_by_the_others(path: Path, how: str, dead: int) -> None:
    found = launch(3, path, f"{how} {dead}")
    assert found[dead][0] == -9
    for rank in {0, 1, 2} - {dead}:
        status, text = found[rank]
        assert status == 2, text
        assert text.startswith(f"SlimfastError: rank {dead} ({socket.gethostname()}, process ")
        assert " died" in text


def test_the_job_of_a_dead_rank_is_over_within_half_a_minute() -> None:
    # The death of a rank is seen a timeout after its last beat, at the beat that follows; the rank that holds
    # the store waits for others to learn of it. A third of the time is left for a busy machine.
    noticed = distributed.TIMEOUT + 2 * distributed._BEAT
    assert noticed + distributed._GRACE * distributed._BEAT <= 20


def test_a_rank_that_fails_is_named_with_its_error(path: Path) -> None:
    found = launch(3, path, "raise 2")
    assert found[2][0] == 1
    for status, text in found[:2]:
        assert status == 2
        assert text.startswith("SlimfastError: rank 2 (")
        assert text.endswith("failed: ValueError: no more")


def pair() -> list[Team]:
    """Two ranks in this process."""
    store = HashStore()
    teams = [Team(store, rank, 2, 4.0) for rank in range(2)]
    other = threading.Thread(target=teams[1].arrive)
    other.start()
    teams[0].arrive()
    other.join()
    return teams


def test_contents_of_any_size_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_CHUNK", 3)
    first, second = pair()
    found: list[list[bytes]] = []
    other = threading.Thread(target=lambda: found.extend(second.exchange(x) for x in (b"abcdefg", b"")))
    other.start()
    assert [first.exchange(x) for x in (b"", b"xyz")] == [[b"", b"abcdefg"], [b"xyz", b""]]
    other.join()
    assert found == [[b"", b"abcdefg"], [b"xyz", b""]]
    second.leave(b"-")
    first.leave(b"-")


def test_a_rank_that_leaves_without_its_share_is_named() -> None:
    first, second = pair()
    second.leave(b"-")
    with pytest.raises(SlimfastError, match=r"^rank 1 \(.*, process \d+\) has left"):
        first.exchange(b"mine")
    first.leave(b"-")
