# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# They need Python 3.12 or 3.13; PYTHON=/path/to/python chooses one.

VENV ?= .venv
PYTHON ?= $(shell for candidate in python3.12 python3.13 python3; do \
	$$candidate -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$candidate && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install quickstart test test-fast lint clean

install: $(READY)

$(READY): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.12 or 3.13 is needed (megatron-core's training loop asks for it)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval]'
	@touch $@

quickstart: $(READY)  ## the whole road on this machine, about eight minutes on two cores
	PATH="$(abspath $(BIN)):$$PATH" examples/quickstart/run.sh

test: $(READY) lint  ## everything, slow tests included
	$(BIN)/python -m pytest

test-fast: $(READY)  ## without the tests that take more than ten seconds
	$(BIN)/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
