# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# They need Python 3.12 or 3.13; PYTHON=/path/to/python chooses one.

VENV ?= .venv
PYTHON ?= $(shell for candidate in python3.12 python3.13 python3; do \
	$$candidate -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$candidate && break; done)
BIN := $(VENV)/bin
MEGATRON ?= 0.18.2 installed
READY := $(VENV)/.ready

.PHONY: install slurm slurm-facts quickstart test test-fast contract lint clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.12 or 3.13 is needed (megatron-core's training loop asks for it)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[megatron,dev,eval]'
	@touch $@

SLURM_PROGRAMS := munged slurmctld slurmd sbatch srun shellcheck
INSTALL_SLURM := apt-get install --yes -qq --no-install-recommends munge slurmctld slurmd slurm-client shellcheck

slurm:  ## what tests/slurm and the lint of shell scripts need; without it they are skipped
	@missing() ( PATH="$$PATH:/usr/sbin:/sbin"; \
		for program in $(SLURM_PROGRAMS); do command -v $$program > /dev/null || printf ' %s' $$program; done ); \
	test -n "$$(missing)" || exit 0; \
	if test "$$(id -u)" = 0; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(INSTALL_SLURM) > /dev/null; \
		test -z "$$(missing)" || { echo "still not installed:$$(missing)" >&2; exit 1; }; \
	else \
		echo "not installed:$$(missing). An administrator can do that: $(INSTALL_SLURM)" >&2; exit 1; \
	fi

slurm-facts: $(READY)  ## facts about SLURM itself; a test asks for it when the installed version of SLURM is new
	MINIPLM_REQUIRE_SLURM=1 $(BIN)/python -m pytest tests/slurm -m slurm_facts
	$(BIN)/python tests/support/slurm_facts.py

quickstart: $(READY)  ## the whole road on this machine, five to six minutes on two cores
	PATH="$(abspath $(BIN)):$$PATH" examples/quickstart/run.sh

# Two pytest processes side by side: SLURM tests wait, and jobs that are killed are waited for. The log of the first is shown
# when the second is done. A whole run fails if it outgrows the budget of CPU seconds of either (CONTRIBUTING.md). What SLURM
# starts is no child of pytest and not in it.
JOBS := tests/slurm tests/end_to_end
COSTS_OF_JOBS := tests/costs-jobs.tsv
COSTS := tests/costs.tsv

define ALL_TESTS
	@mkdir -p build; $(BIN)/python -m pytest $(JOBS) $(1) $(COSTS_OF_JOBS) > build/jobs.log 2>&1 & jobs=$$!; \
	$(BIN)/python -m pytest $(JOBS:%=--ignore %) $(1) $(COSTS); status=$$?; \
	wait $$jobs; status_of_jobs=$$?; cat build/jobs.log; exit $$((status | status_of_jobs))
endef

.PHONY: dist lower-bounds packaging fuzz chaos mutations test-costs unit end-to-end slurm-tests lint-check lint-format lint-types lint-imports lint-shell

test: $(READY) lint  ## everything, slow tests included, within the budget of costs
	$(call ALL_TESTS,--costs)

test-costs: $(READY)  ## everything, and write the budget of costs anew
	$(call ALL_TESTS,--write-costs)

test-fast: $(READY)  ## no slow tests and no SLURM; under three minutes on two idle cores
	$(BIN)/python -m pytest -m "not slow" --ignore tests/slurm --slowest 20

mutations: $(READY)  ## ten planted faults, each found by the tests that should find it; about ten minutes
	$(BIN)/python tests/mutations.py

FUZZ_SECONDS ?= 600

fuzz: $(READY)  ## damaged files of every format; FUZZ_SECONDS of CPU time per test, FORMAT=idx for one format
	MINIPLM_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests -k "fuzz_$(FORMAT)"

unit: $(READY)  ## everything that starts neither a whole job nor a cluster, slow tests included
	$(BIN)/python -m pytest --ignore tests/contract --ignore tests/end_to_end --ignore tests/slurm --slowest 20

chaos: $(READY)  ## 50 pairs at once, 20 kills and 20 full disks for every tool that writes; hours
	MINIPLM_RACES=50 MINIPLM_CRASHES=20 $(BIN)/python -m pytest tests/end_to_end/test_interrupted_tools.py

end-to-end: $(READY)
	$(BIN)/python -m pytest tests/end_to_end --slowest 20

slurm-tests: $(READY)  ## on a real cluster on this machine; `make slurm` installs what it needs
	$(BIN)/python -m pytest tests/slurm --slowest 20

LAUNCH_TESTS := tests/test_launch.py tests/end_to_end/test_launched_training.py
# Our own programs need 0.18; scripts of the user's and views of a corpus work with 0.17 too.
TESTS_OF_0.17 := tests/contract/test_refined_data.py tests/contract/test_indexed_against_megatron.py $(LAUNCH_TESTS)

contract: $(MEGATRON:%=contract-%)  ## the tests against real Megatron, MEGATRON="0.17.1 0.18.2 installed" chooses which

contract-installed: $(READY)
	$(BIN)/python -m pytest tests/contract $(LAUNCH_TESTS)

contract-0.17.%: build/megatron-0.17.%/.ready
	PYTHONPATH="$(abspath $(<D))" $(BIN)/python -m pytest $(TESTS_OF_0.17)

contract-%: build/megatron-%/.ready
	PYTHONPATH="$(abspath $(<D))" $(BIN)/python -m pytest tests/contract $(LAUNCH_TESTS)

# The stages that need no model, in an environment without Megatron and torch, at the lowest versions that are allowed.
WITHOUT_MEGATRON := tests/artifacts tests/indexed tests/corpus tests/selection

lower-bounds: build/lower-bounds/.ready  ## about ten minutes on two cores
	build/lower-bounds/bin/python -m pytest $(WITHOUT_MEGATRON) -m "not slow"

packaging: $(READY)  ## the wheel, and what pip would install beside each Megatron; needs a package index
	MINIPLM_EVERY_ENVIRONMENT=1 $(BIN)/python -m pytest tests/test_packaging.py

dist:  ## wheel and source distribution, checked, installed into empty environments and tried there
	test -x build/packager/bin/python || $(PYTHON) -m venv build/packager
	build/packager/bin/python -m pip install --quiet build twine
	rm -rf dist
	build/packager/bin/python -m build --outdir dist
	build/packager/bin/python -m twine check --strict dist/*
	set -e; for built in dist/*; do \
		rm -rf build/empty; $(PYTHON) -m venv build/empty; \
		build/empty/bin/python -m pip install --quiet "$$built"; \
		build/empty/bin/python tests/support/installed_smoke.py; \
	done

build/lower-bounds/.ready: pyproject.toml lower-bounds.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint lower-bounds.txt --editable '.[plots]' hypothesis pytest
	@touch $@

build/megatron-%/.ready: $(READY)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) megatron-core==$*
	@touch $@

.PRECIOUS: build/megatron-%/.ready

SHELL_SCRIPTS = $(wildcard .ci/run examples/*.sh examples/*/*.sh examples/*/*.conf docs/*.conf slurm/*.sh slurm/*.sbatch)

lint: lint-check lint-format lint-types lint-imports lint-shell

lint-check: $(READY)
	$(BIN)/ruff check .

lint-format: $(READY)
	$(BIN)/ruff format --check .

lint-types: $(READY)
	$(BIN)/mypy

lint-imports: $(READY)  ## who may import whom: the contracts in pyproject.toml
	$(BIN)/lint-imports --no-cache

lint-shell:
	@if command -v shellcheck > /dev/null; then \
		echo "shellcheck $(SHELL_SCRIPTS)"; shellcheck --external-sources --source-path=SCRIPTDIR $(SHELL_SCRIPTS); \
	else \
		echo "shellcheck is not installed (make slurm): shell scripts are not checked"; \
		test "$$MINIPLM_REQUIRE_SLURM" != 1; \
	fi

clean:
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
