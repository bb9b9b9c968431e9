# Everything on a fresh machine with python3, g++ and make: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is made when a module is first imported: most of what these packages hold never is.
PIP := $(BIN)/pip install --disable-pip-version-check --no-compile -c constraints.txt
SOURCES := CMakeLists.txt $(shell find csrc -type f)
CXX_SOURCES := $(filter %.cpp %.hpp %.cu %.cuh,$(SOURCES)) tests/threads/threads.cpp

# The CUDA kernels: ON, OFF, or AUTO, which builds them where a GPU can run them. The tests want them wherever nvcc is.
DEMO_CUDA := $(or $(SLIMFAST_CUDA),AUTO)
TEST_CUDA := $(or $(SLIMFAST_CUDA),$(if $(shell command -v nvcc 2>/dev/null),ON,AUTO))
# Stamps of what is installed, named by what was asked for, so that asking for something else installs anew.
DEMO := $(VENV)/.demo-$(DEMO_CUDA)
TEST := $(VENV)/.test-$(TEST_CUDA)

.PHONY: demo test kinds build coverage check docs format bench sanitize sanitize-threads sanitize-gpu fuzz dist wheels clean

demo: $(DEMO)
	$(BIN)/slimfast demo -o demo

# One process a core; plain `pytest` runs the same tests one after another.
test: build
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

# All that the tests need. Incremental: a changed .cpp compiles that file alone.
build: $(TEST)

# Of each kind of network and of use that people report: the tests that docs/developer/kinds.md names.
kinds: build
	OMP_NUM_THREADS=1 $(BIN)/python tools/kinds.py -n auto

coverage: build
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --cov=slimfast --cov-report=term-missing:skip-covered --cov-fail-under=90

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m benchmarks.tables --check
	$(BIN)/python tools/api.py --check
	$(BIN)/python tools/cli_page.py --check
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

# The site of the documentation, into site/.
docs: build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Without an earlier run there is nothing to compare with, and the plugin warns.
bench: build
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-compare \
	    -W ignore::pytest_benchmark.logger.PytestBenchmarkWarning

# The sanitised module stands in for the plain one while the tests run.
sanitize: build
	$(BIN)/cmake -S . -B build/sanitize -DSLIMFAST_CUDA=OFF -DSLIMFAST_SANITIZE=address,undefined \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitize --target _cpu
	plain=$$($(BIN)/python -c 'import slimfast._cpu as cpu; print(cpu.__file__)'); cp $$plain build/sanitize/plain.so; \
	cp build/sanitize/csrc/cpu/_cpu.*.so $$plain; \
	LD_PRELOAD="$(foreach lib,asan.so ubsan.so stdc++.so.6,$$(gcc -print-file-name=lib$(lib)))" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 OMP_NUM_THREADS=2 \
	    $(BIN)/pytest tests/kernels/test_covariance.py tests/kernels/test_eigvalsh.py tests/kernels/test_pivoted_cholesky.py tests/kernels/test_gather.py \
	    tests/kernels/test_grouped_moments.py tests/kernels/test_cross_covariance.py tests/kernels/test_patch_moments.py \
	    tests/kernels/test_cholesky_solve.py tests/kernels/test_isa.py; \
	status=$$?; cp build/sanitize/plain.so $$plain; exit $$status

# A million executions take hours; EXECUTIONS is for each target. Guided by atheris, where its wheel installs.
EXECUTIONS ?= 100000
fuzz: build
	$(PIP) 'slimfast[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --executions $(EXECUTIONS) --folder build/fuzz

# Started threads instead of OpenMP's, whose runtime the sanitizer does not know.
sanitize-threads: build
	$(BIN)/cmake -S . -B build/sanitize-threads -DSLIMFAST_CUDA=OFF -DSLIMFAST_SANITIZE=thread -DSLIMFAST_OPENMP=OFF \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitize-threads --target threads
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-threads/csrc/cpu/threads

# On a machine with an NVIDIA GPU, under compute-sanitizer, which is some hundred times slower: small cases of every
# kernel of slimfast._cuda. racecheck sees shared memory alone.
sanitize-gpu: build
	for tool in memcheck racecheck synccheck; do \
	    compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(BIN)/pytest tests/kernels/test_cuda_small.py -m gpu -p no:cacheprovider || exit 1; \
	done

dist: build
	$(BIN)/python -m build

# The CPU wheel, checked in a fresh environment, and its list of parts.
wheels:
	PYTHON=$(PYTHON) sh tools/wheels.sh

clean:
	rm -rf build dist demo site $(VENV)

# What builds slimfast stays in the environment: pip's isolated builds have new paths each time and start from nothing.
$(VENV)/.tools: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'pip>=23.1' scikit-build-core pybind11 cmake ninja
	touch $@

# $(call install,CUDA,EMULATION): the objects stay in one folder under build/, whatever is asked for. --verbose shows progress.
define install
	rm -f $(VENV)/.demo-* $(VENV)/.test-*
	SLIMFAST_CUDA=$(1) $(PIP) --verbose --no-deps --no-build-isolation --check-build-dependencies \
	    -C cmake.define.SLIMFAST_CUDA_EMULATION=$(2) -C cmake.define.SLIMFAST_CPU_EMULATION=$(2) -e .
endef

# $(call needs,EXTRAS): what slimfast, installed before, needs; a changed source needs nothing new.
needs = $(if $(filter-out $(SOURCES),$?),$(PIP) 'slimfast[$(1)]')

$(DEMO): pyproject.toml constraints.txt $(SOURCES) | $(VENV)/.tools
	$(call install,$(DEMO_CUDA),OFF)
	$(call needs,demo)
	touch $@

$(TEST): pyproject.toml constraints.txt $(SOURCES) | $(VENV)/.tools
	$(call install,$(TEST_CUDA),ON)
	$(call needs,dev)
	touch $@ $(DEMO)
