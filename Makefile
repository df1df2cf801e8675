# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 and the package registries.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first, from the constraint that fits the machine: no CUDA build where there is no GPU.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
WORKERS ?= 2

.PHONY: setup demo test test-real-model test-engine test-gpu lint format docs bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints/$(DEVICE).txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep -v '^#' constraints/$(DEVICE).txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/$(DEVICE).txt -e ".[dev,gguf]"
	touch $@

demo: setup
	$(BIN)/ctxforge demo --out demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS)

# SmolLM2-135M and Emma, both from the package registries.
test-real-model: setup
	$(BIN)/python -m pytest -m real_model

# A second environment with transformers 4.57.
test-engine: setup .venv-transformers4/.done
	$(BIN)/python -m pytest -m engine

.venv-transformers4/.done:
	$(PYTHON) -m venv .venv-transformers4
	.venv-transformers4/bin/pip install --quiet "$$(grep -v '^#' constraints/$(DEVICE).txt)"
	.venv-transformers4/bin/pip install --quiet "transformers==4.57.*" safetensors numpy
	touch $@

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/convert.py --gigabytes 1
	$(BIN)/python benchmarks/perplexity.py

clean:
	rm -rf $(VENV) .venv-transformers4 demo dist build
