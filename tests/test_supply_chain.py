"""What importing and using slimfast does not do: open the network, start programs, run code from a file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import slimfast

ROOT = Path(slimfast.__file__).parents[1]
MARK = "a_strangers_code_7f3a"

# Seen from the first line on: the import of slimfast, then reading, planning, pruning, saving and loading.
PROGRAM = f"""
import sys

seen = []
NEVER = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "subprocess.", "os.system",
         "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")


def hook(event, arguments):
    if event.startswith(NEVER):
        seen.append((event, repr(arguments)[:200]))
    elif event in ("exec", "compile"):
        code = arguments[0]
        parts = [getattr(code, name, "") for name in ("co_consts", "co_names", "co_filename")]
        text = repr((arguments, parts))
        if {MARK!r} in text:
            seen.append((event, text[:200]))


sys.addaudithook(hook)
if sys.argv[1] == "careless":
    import pickle

    pickle.loads(open(sys.argv[2] + "/hostile.pth", "rb").read())
else:
    import torch
    import slimfast

    folder = sys.argv[2]
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    refused = 0
    for name in ("hostile.pth", "hostile.safetensors", "zipped.pth"):
        try:
            slimfast.measure_spectra(f"{{folder}}/{{name}}")
        except slimfast.SlimfastError:
            refused += 1
    assert refused == 3
    slimfast.measure_spectra(folder + "/weights.safetensors")
    slimfast.measure_spectra(folder + "/weights.pth")
    plan = slimfast.plan(model, torch.zeros(1, 6), params=0.6)
    plan.save(folder + "/plan.json")
    thin = slimfast.prune_channels(model, slimfast.Plan.load(folder + "/plan.json"))
    slimfast.save(thin, folder + "/thin.safetensors")
    slimfast.load(folder + "/thin.safetensors", model)
print(seen)
"""


class Payload:
    """Its pickle compiles and runs a line when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"{MARK} = 1",)


def run(mode: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.stdout.strip()


def test_no_network_no_program_and_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    tensors = {f"{MARK}.weight": torch.randn(4, 6)}
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"code": f"{MARK} = 1"})
    torch.save(tensors, tmp_path / "weights.pth")
    torch.save({"x": Payload(), **tensors}, tmp_path / "zipped.pth")
    for name in ("hostile.pth", "hostile.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    careless = run("careless", tmp_path)
    assert "pickle.find_class" in careless
    assert MARK in careless
    assert run("careful", tmp_path) == "[]"
