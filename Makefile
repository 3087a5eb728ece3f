# make demo: the main job on the embedded model.  make test: the tests.  make check: lint, format, types.
# make soak: 50 runs killed and resumed, and a store of millions of items (about half an hour).
# Each sets up .venv first where it is missing or older than the lock.
PYTHON ?= python3
VENV := .venv
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check soak

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt torch
	$(VENV)/bin/pip install -q -c constraints.txt -e ".[test]"
	touch $@

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash scripts/demo.sh 0

# in the order of tests/conftest.py, the slowest files first
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

soak: $(VENV)/installed
	$(VENV)/bin/python benchmarks/soak.py --kills 50
