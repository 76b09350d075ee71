# `make demo` and `make test` install what they need into .venv on their first call.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Up to four processes share the tests, most of which keep one core busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The numeric tests again as a CPU without AVX-512 runs them; tests/masked_cpu.py lists them.
MASKED := $(subst -m pytest,-m tests.masked_cpu,$(PYTEST))

.PHONY: demo test test-fast lint format benchmark clean

demo: $(VENV)/.cpu
	$(BIN)/sctok demo

test: lint
	$(PYTEST)
	$(MASKED)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/frontend.py
	$(BIN)/python benchmarks/kmeans.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name '*.nb[ci]' -not -path './$(VENV)/*' -delete

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sctok needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module is incomplete here: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }

$(VENV)/.cpu: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu,dev]'
	@$(PIP) --editable '.[visqol,pesq]' || \
		echo "ViSQOL and PESQ need a C++ compiler; the tests of them are left out" >&2
	@touch $@ $(VENV)/.cpu
