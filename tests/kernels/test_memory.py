"""How much of a device a call takes: asked of the device, and without influence on any result."""

from __future__ import annotations

import pytest
import torch
from support import kernels_cases as cases

from slimfast import measure_spectra
from slimfast.kernels import grouped_spectra, memory, ops
from slimfast.spectra import eigenvalues
from slimfast.storage.weights import open_weights

GIB = 1 << 30


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, tuple[int, int, int]]:
    """What each GPU says: bytes that the driver has free, that PyTorch holds, and of those in use."""
    told: dict[torch.device, tuple[int, int, int]] = {}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (told[device][0], 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: told[device][1])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: told[device][2])
    return told


def test_a_call_on_a_gpu_takes_a_third_of_what_it_has_free_up_to_a_bound(answers) -> None:
    small, large = torch.device("cuda", 1), torch.device("cuda", 0)
    # 2 GiB that the driver has, 1 GiB that PyTorch holds unused.
    answers[small] = (2 * GIB, 5 * GIB, 4 * GIB)
    answers[large] = (130 * GIB, 0, 0)
    assert memory.free_bytes(small) == 3 * GIB
    assert memory.call_bytes(small, 7) == GIB
    assert memory.call_bytes(large, 7) == memory.MOST_GPU_BYTES
    # A third of what an H100 has free beside a decoder of 8 billion 16-bit weights: all of its 160 matrices
    # of 4096 rows and 64 of 1024 in one call.
    answers[large] = (64 * GIB, 0, 0)
    assert memory.call_bytes(large, 7) >= 160 * 8 * 4096**2 + 64 * 8 * 1024**2


def test_elsewhere_nothing_is_asked(answers) -> None:
    assert memory.free_bytes(torch.device("cpu")) is None
    assert memory.call_bytes(torch.device("cpu"), 7) == 7
    assert memory.call_bytes(torch.device("meta"), 7) == 7


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of layers in each call of the covariance."""
    counts: list[int] = []
    covariance = ops.grouped_covariance

    def grouped_covariance(xs, **options):
        counts.append(len(xs))
        return covariance(xs, **options)

    monkeypatch.setattr(ops, "grouped_covariance", grouped_covariance)
    return counts


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_grouped_spectra_follow_the_device_and_do_not_depend_on_it(
    backend: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    xs = [cases.normal(n, 2 * n, dtype=torch.float32) for n in (5, 40, 40, 17, 64)]
    found = {}
    # Of 8 bytes an entry: one matrix at a time, the largest and then the others, and all.
    for free, expected in ((0, [1] * 5), (3 * 8 * 64**2, [1, 4]), (GIB, [5])):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        found[free] = grouped_spectra(xs, backend=backend)
        assert counted == expected
        counted.clear()
    for values in zip(*(spectra.eigenvalues for spectra in found.values()), strict=True):
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])


def test_measured_layers_follow_the_device_and_do_not_depend_on_it(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {f"layer{i}": cases.normal(n, 2 * n, dtype=torch.float32) for i, n in enumerate((40, 40, 40))}
    size = 4 * 40 * 80 + 8 * 40**2
    found = []
    for calls, expected in ((1, [1, 1, 1]), (2, [2, 1]), (9, [3])):
        monkeypatch.setattr(memory, "free_bytes", lambda device, calls=calls: 3 * calls * size)
        found.append([(s.eigenvalues.tobytes(), s.trace) for s in measure_spectra(weights).values()])
        assert counted == expected
        counted.clear()
    assert found[0] == found[1] == found[2]


def test_layers_are_measured_one_device_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(eigenvalues, "BATCH_BYTES", 20)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 90 if device == gpu else None)
    devices = [cpu, gpu, cpu, gpu, gpu, cpu, gpu]
    # 20 bytes a call on the CPU, 30 on the GPU; what is larger goes alone.
    assert eigenvalues._cut("abcdefg", [10, 10, 10, 20, 40, 15, 5], devices) == [
        ["a", "c"],
        ["f"],
        ["b", "d"],
        ["e"],
        ["g"],
    ]


def test_where_a_tensor_lies_is_known_before_it_is_read(tmp_path) -> None:
    assert open_weights({"a": torch.zeros(2, 2)}).infos["a"].device == torch.device("cpu")
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "a.pth")
    assert open_weights(tmp_path / "a.pth").infos["a"].device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_says_what_it_has_free() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = memory.free_bytes(device)
    held = torch.empty(GIB, dtype=torch.uint8, device=device)
    assert before is not None
    taken = before - memory.free_bytes(device)
    assert GIB <= taken < 1.2 * GIB
    weights = {"a": held[: 64 * 256].view(torch.float32).view(64, 64).zero_()}
    assert open_weights(weights).infos["a"].device == device
    assert measure_spectra(weights)["a"].trace == 0.0
