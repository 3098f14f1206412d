# Ablate: every target sets up what it needs, from a fresh clone. `make help` lists them.
SHELL := /bin/bash
# Idle OpenMP threads sleep instead of spinning: on busy machines steps are several times faster.
export OMP_WAIT_POLICY ?= PASSIVE
VENV ?= .venv
# Any Python from 3.11 on: the newest tested one that this machine has, or PYTHON=... .
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
BIN := $(VENV)/bin
ABLATE := $(BIN)/ablate

CONNECTOR ?=
SWEEP ?= demo
SHARD ?=
JOBS ?= 2
RUNS ?=
BASELINE ?=
RERUN ?=
PYTEST_ARGS ?=
# Processes that run tests; TEST_JOBS=0 for one that a debugger can stop in.
TEST_JOBS ?= 2
# Every test run ends with what was skipped and why, equal reasons together.
PYTEST := $(BIN)/python -m pytest -rs -n $(TEST_JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup setup-engines demo sweep table test test-all test-gpu bench bench-gpu lint format clean

help: ## list the targets
	@echo "Ablate: which connector between a vision encoder and a Mamba-2 language model is better?"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  make sweep CONNECTOR=msc_csm       one connector          make sweep CONNECTOR=mlp,msc_csm   several"
	@echo "  make sweep                         every connector        make sweep SHARD=0/4               a quarter of the runs"
	@echo "  SWEEP=name|FILE chooses the sweep (experiments/sweeps/), JOBS=n runs n at once, BASELINE=name sets the table's baseline,"
	@echo "  ENGINE=slurm runs it on a cluster, RERUN=1 runs finished runs again whose connector's source has changed"

setup: $(VENV)/.installed ## make .venv and install Ablate in it (the other targets do it by themselves)

$(VENV)/.python:
	@if [ -z "$(PYTHON)" ]; then echo "error: no python3 found; install Python 3.11 or newer, or say PYTHON=/path/to/python3" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; say PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@echo "Making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# pip has said what went wrong; this says what to do. What it has downloaded is in its cache.
define pip_install
trap 'echo "Interrupted. The same command continues." >&2; exit 130' INT; \
	$(BIN)/pip install --quiet --disable-pip-version-check $(1) || \
	{ echo "error: pip could not install $(2) (its message is above). Is the package registry within reach (pip config list; PIP_INDEX_URL) and is there space on the disk? The same command continues." >&2; exit 2; }
endef

$(VENV)/.installed: pyproject.toml | $(VENV)/.python
	@echo "Installing Ablate and its packages into $(VENV) (PyTorch's CUDA build is about 5 GB and runs on the CPU too)"
	@$(call pip_install,-e .,Ablate's packages)
	@touch $@

# The reference implementations that tests and benchmarks compare with. mamba-ssm without nvcc: its Triton kernels are Python.
$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development packages into $(VENV)"
	@$(call pip_install,-e '.[dev]',the development packages)
	@MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(BIN)/pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps mamba-ssm==2.3.2.post1 || echo "mamba-ssm cannot be built here: its parity tests will be skipped" >&2
	@touch $@

setup-engines: ## install SLURM (Debian, root), on which tests start a cluster of one node
	@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null

demo: $(VENV)/.installed ## make the demo's data: real parts, shards, six tasks, a contact sheet
	@$(ABLATE) data demo

sweep: $(VENV)/.installed ## train and evaluate connectors, print the ablation table; CONNECTOR=msc_csm for one
	@$(ABLATE) sweep $(SWEEP) $(if $(CONNECTOR),--connector $(CONNECTOR)) $(if $(SHARD),--shard $(SHARD)) --jobs $(JOBS) $(if $(ENGINE),--engine $(ENGINE)) $(if $(BASELINE),--baseline $(BASELINE)) $(if $(RERUN),--rerun)

table: $(VENV)/.installed ## print the ablation table of the finished runs again; RUNS="folder ..." for others
	@$(ABLATE) table $(RUNS) $(if $(BASELINE),--baseline $(BASELINE))

test: $(VENV)/.installed-dev ## the fast tests: offline, on the CPU, under five minutes on two cores
	@$(PYTEST) -m "not slow and not gpu and not network" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev ## every test, the slow ones and those that download included
	@$(PYTEST) $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed-dev ## the tests that need a CUDA device
	@$(PYTEST) -n 0 -m gpu $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev ## measure speed and memory beside named references, as ratios (about 10 minutes)
	@$(BIN)/python tests/bench/run.py

bench-gpu: $(VENV)/.installed-dev ## the same on a CUDA device
	@$(BIN)/python tests/bench/run.py --device cuda

lint: $(VENV)/.installed-dev ## ruff: rules and format; import-linter: no import goes up a layer; mypy: types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache && $(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff put the code in form
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove what the tools cache (never runs/ or data/)
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
