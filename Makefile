# Everything on a fresh machine with python3, g++ and make: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt \
    $(shell find csrc -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh' -o -name CMakeLists.txt \))
CXX_SOURCES := $(filter %.cpp %.hpp %.cu %.cuh,$(BUILD_INPUTS))
# ASan must be first in the process, before torch: the interpreter itself is not instrumented.
SANITIZERS ?= address,undefined

.PHONY: demo test coverage check format bench sanitize dist clean

demo: $(VENV)/.demo
	$(BIN)/slimfast demo -o demo

test: $(VENV)/.test
	$(BIN)/pytest

coverage: $(VENV)/.test
	$(BIN)/pytest --cov=slimfast --cov-report=term-missing:skip-covered --cov-fail-under=90

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m benchmarks.tables --check

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/.test
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-compare

dist: $(VENV)/.test
	$(BIN)/python -m build

clean:
	rm -rf build dist demo $(VENV)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BUILD_INPUTS) | $(BIN)/pip
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.test: $(BUILD_INPUTS) | $(BIN)/pip
	$(PIP) -e '.[test,check]' -C cmake.define.SLIMFAST_CUDA_EMULATION=ON
	touch $@ $(VENV)/.demo
