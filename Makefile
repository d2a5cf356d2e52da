# Two commands do everything, set-up included:  make demo  and  make test.

DEMO ?= meshtune tune --model llama-3-8b --cluster dgx-h100 --devices 64 --global-batch 256 --seq-len 8192 \
        --trials 24 --parallel 2 --name demo --storage sqlite:///demo-study.db
LOCAL  ?= benchmarks/data/local
PYTEST_ARGS ?= -n 2 --dist loadfile

PACKAGES := search_spaces objectives runners tuner
VENV     := .venv
TOOLS    := .venv-launchers
BIN      := $(VENV)/bin
LOCK     := pyproject.toml constraints.txt

# The first interpreter that answers.  3.11 leads: the CPU build of torch that the tests want exists only there.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

# Without .pyc every start of Python compiles everything anew: seconds a process, not milliseconds.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP_INSTALL = -m pip install -qq --compile

# The tests marked launcher run their questions in the second environment, and are skipped where there is none.
WITH_LAUNCHERS = test ! -e $(TOOLS)/installed || export MESHTUNE_LAUNCHER_PYTHON=$(CURDIR)/$(TOOLS)/bin/python;

.DEFAULT_GOAL := help
.PHONY: help demo test setup setup-dev launchers slurm lint size bench race accuracy papers real-calibrate real-runs \
        slow clean

help:  ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: setup  ## run the main job: a study of simulated trials
	$(BIN)/$(DEMO)

test: setup-dev launchers lint size  ## lint, type-check and test everything, launchers included
	@$(WITH_LAUNCHERS) $(BIN)/pytest $(PYTEST_ARGS)

setup: $(VENV)/stamp-run  ## the environment that runs meshtune

setup-dev: $(VENV)/stamp-dev  ## the same with the developers' tools

launchers: $(TOOLS)/stamp  ## a second environment with Megatron-LM, DeepSpeed and torchtitan, whose parsers check exports

slurm:  ## Debian's Slurm for the tests marked slurm, which are skipped without it; needs root
	@command -v slurmctld >/dev/null || test -x /usr/sbin/slurmctld || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "set-up: Slurm is installed by apt-get and as root; its tests are skipped without it" >&2; exit 2; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends slurm-wlm slurm-client munge; }

lint: setup-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

size: setup-dev  ## files and lines of each folder
	@$(BIN)/python tests/test_shape.py

bench: setup  ## plans per second and the like
	@for file in benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

race: setup-dev  ## our sampler against others, SMAC3 among them: prints the table and keeps its rows
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt 'smac==2.4.1'
	$(BIN)/python benchmarks/race.py --write

accuracy: setup  ## predictions against published runs: prints docs/accuracy.md and writes it
	@$(BIN)/python benchmarks/accuracy.py --write docs/accuracy.md

papers: setup  ## published figures of the founding papers beside ours: prints them and writes docs/papers.md
	@$(BIN)/meshtune papers --write docs/papers.md

real-calibrate: setup-dev  ## measure this machine with two and with four processes at once: four minutes, resumable
	$(BIN)/meshtune calibrate --on cpu --devices 2 -o $(LOCAL)/local-2.toml
	$(BIN)/meshtune calibrate --on cpu --devices 4 -o $(LOCAL)/local-4.toml

real-runs: setup-dev  ## train every plan of docs/examples/real once, through Ray: ten minutes, resumable
	$(BIN)/python benchmarks/real_runs.py -o $(LOCAL)/runs.csv

slow: setup-dev launchers  ## the tests that `make test` leaves out
	@$(WITH_LAUNCHERS) $(BIN)/pytest -m slow

clean:  ## remove environments, caches and build output, but no study
	rm -rf $(VENV) $(TOOLS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(PACKAGES) tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# $(call venv,FOLDER): makes FOLDER unless it works already.  Debian ships python3 without ensurepip;
# then virtualenv, fetched into build/, does the same.
define venv
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	  test -n "$(PYTHON)" || { echo "meshtune needs Python 3.11, 3.12 or 3.13, and none was found; \
	install one (on Debian: apt-get install python3 python3-venv) or name it with: make PYTHON=/path/to/python" >&2; exit 2; }; \
	  rm -rf $(1); \
	  $(PYTHON) -m venv $(1) >/dev/null 2>&1 \
	  || $(PYTHON) -m virtualenv --quiet $(1) 2>/dev/null \
	  || { $(PYTHON) $(PIP_INSTALL) --target build/virtualenv virtualenv 2>/dev/null \
	       && PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet $(1); } \
	  || { rm -rf $(1); echo "$(PYTHON) can make no virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }; \
	  echo "set-up: $(1) with $$($(1)/bin/python --version)"; }
endef

$(VENV)/stamp-run: $(LOCK)
	$(call venv,$(VENV))
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

# One resolution for all, so that the oracles' torch can only be the CPU build: elsewhere than on 3.11, or where
# pip knows no such build, plain torch would drag in gigabytes of CUDA, and the tests that need it are skipped.
$(VENV)/stamp-dev: $(VENV)/stamp-run
	@if $(call has_cpu_torch,$(BIN)/python); then \
	  set -x; $(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev,oracles]' 'torch==2.13.0+cpu'; \
	else \
	  echo "set-up: no CPU build of torch for this Python; tests marked torch are skipped"; \
	  set -x; $(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

# megatron-core claims to need 3.12 and a GPU stack; its argument parser, all that we use, needs neither.
$(TOOLS)/stamp: constraints-launchers.txt $(VENV)/stamp-run
	@if $(call has_cpu_torch,$(BIN)/python); then $(MAKE) --no-print-directory $(TOOLS)/installed; \
	else echo "set-up: no CPU build of torch for this Python; tests marked launcher are skipped"; mkdir -p $(TOOLS); fi
	@touch $@

$(TOOLS)/installed: constraints-launchers.txt
	$(call venv,$(TOOLS))
	$(TOOLS)/bin/python $(PIP_INSTALL) -c constraints-launchers.txt 'torch==2.13.0+cpu' numpy packaging deepspeed torchtitan
	$(TOOLS)/bin/python $(PIP_INSTALL) -c constraints-launchers.txt --no-deps --ignore-requires-python megatron-core
	@touch $@

# $(call has_cpu_torch,PYTHON): whether this is Python 3.11 and pip can find the CPU build for it.
has_cpu_torch = $(1) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
  && $(1) -m pip install --quiet --dry-run --no-deps 'torch==2.13.0+cpu' >/dev/null 2>&1
