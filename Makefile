# `make demo` runs the demo, `make test` runs all CI checks. Both set up .venv first.
# PYTHON: Python 3.11 or newer. KAFKA_HOME: an existing Kafka folder (with libs/), optional.

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

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

install: $(STAMP)  ## set up .venv from the lock files; repeat after they change

demo: $(STAMP)  ## run the demo: events, training, live scoring, alerts
	$(BIN)/unmask demo

test: lint  ## run all CI checks: lint, then all tests with real brokers, three files at a time
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## run ruff, mypy and the import rules
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Downloads only metadata. Without an answer within a minute, the notice is skipped.
define TORCH_NOTICE
if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 \
   && timeout 60 $(BIN)/python -m pip install --quiet --dry-run --ignore-installed --no-deps --report - \
      -r requirements-torch.lock 2>/dev/null | grep -qE '^ *"(nvidia|cuda)-'; then \
  echo "torch: this machine has no NVIDIA GPU, but pip will install the CUDA build (several GB). It works. For the"; \
  echo "smaller CPU build, stop now, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds, and run make again."; \
fi
endef

$(STAMP): requirements.lock requirements-torch.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# --no-deps: the lock file is complete, and pip cannot check hashes of packages that others require with extras.
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@$(TORCH_NOTICE)
	$(BIN)/python -m pip install --quiet -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# torch is pinned separately, without hashes, because CPU and CUDA builds differ. Its dependencies are in the main lock.
TORCH_NEEDS := filelock sympy networkx jinja2 fsspec typing-extensions setuptools
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url
lock:  ## rebuild the lock files from pyproject.toml (needs `uv`)
	@mkdir -p build/lock
	grep -v '"torch' pyproject.toml > build/lock/pyproject.toml
	printf '%s\n' $(TORCH_NEEDS) > build/lock/torch-needs.txt
	$(COMPILE) --all-extras build/lock/pyproject.toml build/lock/torch-needs.txt --output-file requirements.lock
	$(COMPILE) --extra serve --extra bucket --constraints requirements.lock build/lock/pyproject.toml --output-file docker/scorer.lock
	$(COMPILE) --extra train --extra flows --constraints requirements.lock build/lock/pyproject.toml \
	  build/lock/torch-needs.txt --output-file docker/flows.lock

clean:  ## remove .venv, caches and the output of the demo
	rm -rf $(VENV) build *.egg-info .unmask demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
