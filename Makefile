# Two commands for newcomers: `make quickstart` and `make test`. Both make their own virtual
# environment in .venv when there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint soak gpu

quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/installed lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A run of two stages, killed twenty times, against one that nobody disturbed: minutes.
soak: $(VENV)/installed
	$(BIN)/python tests/soak.py --kills 20

# On a machine with a GPU, its own Python packages and no network.
gpu:
	$(PYTHON) benchmarks/gpu.py

# The mark is written last, so an interrupted installation is started again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %d.%d: set PYTHON=python3.11, for instance." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt ".[train,test]"
	touch $@
