"""Measurements that are stopped go on from what they finished, and nothing half-written is read as whole."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from slimfast.errors import SlimfastError
from slimfast.kernels import ops
from slimfast.spectra import Spectrum, eigenvalues, measure_again, measure_spectra
from slimfast.spectra.records import decode, encode
from slimfast.spectra.sidecar import open_sidecar


def layers(count: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}": torch.randn(5 + i, 9, generator=generator) for i in range(count)}


def same(a: dict[str, Spectrum], b: dict[str, Spectrum]) -> bool:
    """Whether all fields are equal bit for bit, names in the same order."""
    return list(a) == list(b) and all(encode(a[name], {}) == encode(b[name], {}) for name in a)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the layers whose spectra are computed from now on."""
    names: list[str] = []
    real = ops.grouped_spectra

    def grouped_spectra(*args, **kwargs):
        names.extend(kwargs["names"])
        return real(*args, **kwargs)

    monkeypatch.setattr(ops, "grouped_spectra", grouped_spectra)
    return names


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigenvalues, "BATCH_BYTES", 1500)


# Records


def spectrum(values: list[float], name: str = "layer") -> Spectrum:
    found = np.sort(np.array(values))[::-1]
    return Spectrum(name, len(values), len(values), found, float(found.sum()), 1 / 3, "float32")


RECORDS = b"".join(
    encode(spectrum(values, name), {"question": "q" + name})
    for name, values in (("a", [3.0, 0.1]), ("ü", [5e-324, 1e300, 0.3]), ("c", [0.0]))
)
ENDS = [0, *(end for _, _, end in decode(RECORDS, "it"))]


def test_records_come_back_bit_for_bit() -> None:
    found = [(encode(s, labels), labels) for s, labels, _ in decode(RECORDS, "it")]
    assert b"".join(content for content, _ in found) == RECORDS
    assert [labels["question"] for _, labels in found] == ["qa", "qü", "qc"]
    assert [s.eigenvalues.tolist() for s, _, _ in decode(RECORDS, "it")][1] == [1e300, 0.3, 5e-324]


@pytest.mark.parametrize("length", range(len(RECORDS) + 1))
def test_what_is_cut_off_at_any_byte_is_no_record(length: int) -> None:
    whole = sum(end <= length for end in ENDS) - 1
    assert len(list(decode(RECORDS[:length], "it"))) == whole


@given(st.integers(0, len(RECORDS) - 1), st.integers(1, 255))
def test_a_changed_byte_ends_the_records(at: int, flip: int) -> None:
    content = bytearray(RECORDS)
    content[at] ^= flip
    before = sum(end <= at for end in ENDS) - 1
    assert len(list(decode(bytes(content), "it"))) == before


# Resuming


def test_a_second_run_computes_nothing_and_gives_the_same(tmp_path: Path, counted: list[str]) -> None:
    expected = measure_spectra(layers())
    counted.clear()
    first = measure_spectra(layers(), resume=tmp_path / "side")
    assert same(first, expected)
    assert sorted(counted) == sorted(expected)
    counted.clear()
    seen: list[tuple[int, int]] = []
    second = measure_spectra(layers(), resume=tmp_path / "side", progress=lambda *at: seen.append(at))
    assert same(second, expected)
    assert counted == []


def test_only_what_is_missing_is_computed(tmp_path: Path, counted: list[str]) -> None:
    measure_spectra(dict(list(layers().items())[:4]), resume=tmp_path / "side")
    counted.clear()
    seen: list[tuple[int, int]] = []
    found = measure_spectra(layers(), resume=tmp_path / "side", progress=lambda *at: seen.append(at))
    assert counted == ["layer4", "layer5"]
    assert seen == [(5, 6), (6, 6)]
    assert same(found, measure_spectra(layers()))


def test_a_file_goes_on_from_what_was_measured_in_memory(tmp_path: Path, counted: list[str]) -> None:
    expected = measure_spectra(layers(), resume=tmp_path / "side")
    save_file(layers(), tmp_path / "w.safetensors")
    counted.clear()
    assert same(measure_spectra(tmp_path / "w.safetensors", resume=tmp_path / "side"), expected)
    assert counted == []


def test_other_weights_are_measured_again(tmp_path: Path, counted: list[str]) -> None:
    tensors = layers()
    measure_spectra(tensors, resume=tmp_path / "side")
    tensors["layer2"] = tensors["layer2"].clone()
    tensors["layer2"][0, 0] += 1
    counted.clear()
    found = measure_spectra(tensors, resume=tmp_path / "side")
    assert counted == ["layer2"]
    assert same(found, measure_spectra(tensors))
    counted.clear()
    measure_spectra(tensors, resume=tmp_path / "side")
    assert counted == []


@pytest.mark.parametrize("option", [{"dtype": torch.float64}, {"backend": "reference"}])
def test_other_options_are_other_measurements(tmp_path: Path, counted: list[str], option: dict) -> None:
    measure_spectra(layers(), resume=tmp_path / "side")
    counted.clear()
    assert same(
        measure_spectra(layers(), resume=tmp_path / "side", **option), measure_spectra(layers(), **option)
    )
    assert len(counted) == 12


def test_measurements_in_float64_are_resumed_too(tmp_path: Path, counted: list[str]) -> None:
    spectra = measure_spectra(layers())
    first = measure_again(layers(), spectra, ["layer1"], resume=tmp_path / "side")
    counted.clear()
    assert same(measure_again(layers(), spectra, ["layer1"], resume=tmp_path / "side"), first)
    assert counted == []
    assert first["layer1"].dtype == "float64"


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0, 1))
def test_a_sidecar_cut_at_any_byte_gives_the_same(tmp_path_factory, share: float) -> None:
    path = tmp_path_factory.mktemp("side") / "side"
    expected = measure_spectra(layers(), resume=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert same(measure_spectra(layers(), resume=path), expected)
    with open_sidecar(path) as sidecar:
        assert len(sidecar.found) == 6
    assert sorted(path.read_bytes()) == sorted(content)


def test_bytes_that_are_no_record_are_said_and_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "side"
    measure_spectra(layers(), resume=path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"SfS1torn")
    with open_sidecar(path) as sidecar:
        assert len(sidecar.found) == 6
    assert path.read_bytes() == whole
    assert "dropped 8 bytes that are no whole record" in caplog.text


# What stops a run


RUN = """
import sys, time
from slimfast.spectra import eigenvalues, measure_spectra
eigenvalues.BATCH_BYTES = 1
measure_spectra(sys.argv[1], resume=sys.argv[2], progress=lambda done, total: time.sleep(0.01))
"""


def test_a_run_killed_at_random_moments_ends_with_the_same(tmp_path: Path) -> None:
    save_file(layers(60), tmp_path / "w.safetensors")
    side = tmp_path / "side"
    command = [sys.executable, "-c", RUN, str(tmp_path / "w.safetensors"), str(side)]
    sizes = []
    for _ in range(3):
        child = subprocess.Popen(command)
        before = side.stat().st_size if side.exists() else 0
        while child.poll() is None and (not side.exists() or side.stat().st_size <= before + 100):
            time.sleep(0.001)
        time.sleep(random.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        sizes.append(side.stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    path = tmp_path / "w.safetensors"
    assert same(measure_spectra(path, resume=side), measure_spectra(path))


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    expected = measure_spectra(layers())
    path = tmp_path / "side"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (5, 700, 1500):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SlimfastError, match=r"^cannot write .*side: File too large$"):
                measure_spectra(layers(), resume=path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        with open_sidecar(path) as sidecar:
            assert len(sidecar.found) == {5: 0, 700: 1, 1500: 3}[limit]
    assert same(measure_spectra(layers(), resume=path), expected)


def test_an_error_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th flush fails, for every k: what was written by then is whole, and the next run goes on."""
    expected = measure_spectra(layers())
    real, path = os.fsync, tmp_path / "side"
    for k in range(7):
        calls = iter(range(100))

        def fsync(descriptor: int, k: int = k, calls=calls) -> None:
            if next(calls) == k:
                raise OSError(5, "Input/output error")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        path.unlink(missing_ok=True)
        with pytest.raises(SlimfastError, match=r"cannot write .*side: Input/output error"):
            measure_spectra(layers(), resume=path)
        monkeypatch.setattr(os, "fsync", real)
        with open_sidecar(path) as sidecar:
            assert len(sidecar.found) == max(0, k - 1)
        assert same(measure_spectra(layers(), resume=path), expected)


def test_two_runs_on_one_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "side"
    measure_spectra(layers(), resume=path)
    content = path.read_bytes()
    with open_sidecar(path), pytest.raises(SlimfastError, match="side: another run writes to it"):
        measure_spectra(layers(seed=1), resume=path)
    assert path.read_bytes() == content


def test_another_file_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("slimfast is fast")
    with pytest.raises(SlimfastError, match=r"notes\.txt: expected a sidecar of slimfast, got another file"):
        measure_spectra(layers(), resume=path)
    assert path.read_text() == "slimfast is fast"
    with pytest.raises(SlimfastError, match=r"cannot write .*: Is a directory"):
        measure_spectra(layers(), resume=tmp_path)
    with pytest.raises(SlimfastError, match=r"side: the folder .*nowhere does not exist"):
        measure_spectra(layers(), resume=tmp_path / "nowhere" / "side")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SlimfastError, match="pipe: it is not a regular file"):
        measure_spectra(layers(), resume=tmp_path / "pipe")


def test_a_folder_without_permission(read_only_folder: Path) -> None:
    with pytest.raises(SlimfastError, match=r"cannot write .*side: Permission denied"):
        measure_spectra(layers(), resume=read_only_folder / "side")
