# Two commands: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready-$(shell cat cpu.lock pyproject.toml | cksum | cut -d' ' -f1)
BIN := $(VENV)/bin
# Images set it; then each of CI's thirty processes compiles thousands of modules again.
unexport PYTHONDONTWRITEBYTECODE
# Reading all tests to take a tenth of them costs each worker fifteen seconds.
SERVED = $(shell grep -rlw --include='test_*.py' 'mark.engine' tests | \
  grep -v -e ^tests/engine/ -e ^tests/load/ | sort)

.PHONY: demo test quick unit load engines long lint setup

demo: setup
	$(BIN)/diffusiongemma-vllm demo

test: quick
	$(MAKE) --jobs 2 --keep-going load engines

# At CI's pace it waits for most of its five minutes.
load: setup
	$(BIN)/python -m pytest -q -rP -m "not long" tests/load/test_load.py

engines: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long" tests/engine
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder \
	  -m "engine and not long" $(filter tests/server/%,$(SERVED)) $(filter-out tests/server/%,$(SERVED))

# Types take one processor a minute.
quick: setup
	$(MAKE) --jobs 2 lint unit

unit: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not engine"

# What would not fit into CI's 25 minutes.
long: setup
	$(BIN)/python -m pytest -q -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

setup: $(STAMP)

# One pip takes one processor more than a minute; without dependencies, order does not matter.
$(STAMP): cpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	grep -v '^#' cpu.lock | xargs -n 20 -P 2 $(BIN)/python -m pip install -q --no-deps --no-compile
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.ready-*
	touch $@
