# Everything on a fresh machine with python3, g++ and make: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt \
    $(shell find csrc -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' -o -name CMakeLists.txt \))
CXX_SOURCES := $(filter %.cpp %.hpp %.cu %.cuh,$(BUILD_INPUTS)) tests/threads/threads.cpp

.PHONY: demo test coverage check format bench sanitize sanitize-threads sanitize-gpu fuzz dist wheels clean

demo: $(VENV)/.demo
	$(BIN)/slimfast demo -o demo

# One process a core; plain `pytest` runs the same tests one after another.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

coverage: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --cov=slimfast --cov-report=term-missing:skip-covered --cov-fail-under=90

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m benchmarks.tables --check
	$(BIN)/python tools/api.py --check

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Without an earlier run there is nothing to compare with, and the plugin warns.
bench: $(VENV)/.test
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-compare \
	    -W ignore::pytest_benchmark.logger.PytestBenchmarkWarning

# The sanitised module stands in for the plain one while the tests run.
sanitize: $(VENV)/.test
	$(BIN)/cmake -S . -B build/sanitize -DSLIMFAST_CUDA=OFF -DSLIMFAST_SANITIZE=address,undefined \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitize --target _cpu
	plain=$$($(BIN)/python -c 'import slimfast._cpu as cpu; print(cpu.__file__)'); cp $$plain build/sanitize/plain.so; \
	cp build/sanitize/csrc/cpu/_cpu.*.so $$plain; \
	LD_PRELOAD="$(foreach lib,asan.so ubsan.so stdc++.so.6,$$(gcc -print-file-name=lib$(lib)))" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 OMP_NUM_THREADS=2 \
	    $(BIN)/pytest tests/kernels/test_covariance.py tests/kernels/test_eigvalsh.py tests/kernels/test_pivoted_cholesky.py tests/kernels/test_gather.py \
	    tests/kernels/test_isa.py; \
	status=$$?; cp build/sanitize/plain.so $$plain; exit $$status

# A million executions take hours; EXECUTIONS is for each target. Guided by atheris, where its wheel installs.
EXECUTIONS ?= 100000
fuzz: $(VENV)/.test
	$(PIP) -e '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --executions $(EXECUTIONS) --folder build/fuzz

# Started threads instead of OpenMP's, whose runtime the sanitizer does not know.
sanitize-threads: $(VENV)/.test
	$(BIN)/cmake -S . -B build/sanitize-threads -DSLIMFAST_CUDA=OFF -DSLIMFAST_SANITIZE=thread -DSLIMFAST_OPENMP=OFF \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitize-threads --target threads
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-threads/csrc/cpu/threads

# On a machine with an NVIDIA GPU, under compute-sanitizer, which is some hundred times slower: small cases of every
# kernel of slimfast._cuda. racecheck sees shared memory alone.
sanitize-gpu: $(VENV)/.test
	for tool in memcheck racecheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(BIN)/pytest tests/kernels/test_cuda_small.py -m gpu -p no:cacheprovider || exit 1; \
	done

dist: $(VENV)/.test
	$(BIN)/python -m build

# The CPU wheel, checked in a fresh environment, and its list of parts.
wheels:
	PYTHON=$(PYTHON) sh tools/wheels.sh

clean:
	rm -rf build dist demo $(VENV)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BUILD_INPUTS) | $(BIN)/pip
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.test: $(BUILD_INPUTS) | $(BIN)/pip
	$(PIP) -e '.[test,check]' -C cmake.define.SLIMFAST_CUDA_EMULATION=ON -C cmake.define.SLIMFAST_CPU_EMULATION=ON
	touch $@ $(VENV)/.demo
