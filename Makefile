# `make demo` is the tour, `make test` is what CI does; both set up .venv first.
# PYTHON: any Python from 3.11 on. KAFKA_HOME: a Kafka folder (with libs/), where you have one already.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := pipelines models flows

export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help install demo test lint lock clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

install: $(STAMP)  ## set up .venv from the lock files (again after they change)

demo: $(STAMP)  ## the whole product on this machine: stream, training, live scoring, alerts
	$(BIN)/unmask demo

test: lint  ## everything CI does: lint, then all tests against real brokers, two at a time
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

lint: $(STAMP)  ## ruff, mypy, import directions
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Only metadata is asked for; a minute without an answer means going on without the notice.
define TORCH_NOTICE
if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 \
   && timeout 60 $(BIN)/python -m pip install --quiet --dry-run --ignore-installed --no-deps --report - \
      -r requirements-torch.lock 2>/dev/null | grep -qE '^ *"(nvidia|cuda)-'; then \
  echo "torch: there is no NVIDIA GPU here, however pip will take the CUDA build (some GB). It works; to have the"; \
  echo "small CPU build, stop here, let PIP_EXTRA_INDEX_URL name PyTorch's own index of CPU builds, and run make again."; \
fi
endef

$(STAMP): requirements.lock requirements-torch.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# --no-deps: the lock is complete, and pip's resolver refuses hashes for packages that others want with extras.
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@$(TORCH_NOTICE)
	$(BIN)/python -m pip install --quiet -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# torch is pinned apart, without hashes: its CPU and CUDA builds differ. What it needs is in the main lock.
TORCH_NEEDS := filelock sympy networkx jinja2 fsspec typing-extensions setuptools
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url
lock:  ## resolve the lock files anew from pyproject.toml and docker/scorer.in (wants `uv`)
	@mkdir -p build/lock
	grep -v '"torch' pyproject.toml > build/lock/pyproject.toml
	printf '%s\n' $(TORCH_NEEDS) > build/lock/torch-needs.txt
	$(COMPILE) --all-extras build/lock/pyproject.toml build/lock/torch-needs.txt --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock docker/scorer.in --output-file docker/scorer.lock

clean:  ## remove .venv, caches, and what the demo left
	rm -rf $(VENV) build *.egg-info .unmask demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
