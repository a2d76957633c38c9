# Two commands for newcomers: `make quickstart` and `make test`. Both make their own virtual
# environment in .venv when there is none.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart demo test lint card soak gpu gpu-train

quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py

# The page on which to try the model: http://127.0.0.1:7860.
demo: $(VENV)/demo-installed
	$(BIN)/python -m serving.app

test: $(VENV)/test-installed lint
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What the shipped model achieves on the corpus that it comes from, beside n-grams: train-*.jsonl.xz
# and one or more valid*.jsonl.xz in CORPUS, of which valid-everyday is reported first.
HELD_OUT = $(patsubst $(CORPUS)/%.jsonl.xz,%,$(sort $(wildcard $(CORPUS)/valid*.jsonl.xz)))
card: $(VENV)/installed
	$(BIN)/python -m pretraining.prepare_corpus --corpus $(CORPUS)/train-*.jsonl.xz --tokenizer . \
		--seq_len 512 --output runs/mini/rows/train-512
	for name in $(HELD_OUT); do for length in 512 2048; do \
		$(BIN)/python -m pretraining.prepare_corpus --corpus $(CORPUS)/$$name.jsonl.xz \
		--tokenizer . --seq_len $$length --separate_domains --tasks 1 \
		--output runs/mini/rows/$$name-$$length || exit 1; done; done
	$(BIN)/python -m pretraining.model_report --model . --sentences \
		--eval $(HELD_OUT:%=runs/mini/rows/%-512) --train runs/mini/rows/train-512
	$(BIN)/python -m pretraining.model_report --model . --eval $(HELD_OUT:%=runs/mini/rows/%-2048)

# A run of two stages, killed twenty times, against one that nobody disturbed: minutes.
soak: $(VENV)/test-installed
	$(BIN)/python tests/soak.py --kills 20

# On a machine with a GPU, its own Python packages and no network: at most eight files in OUT.
gpu:
	$(PYTHON) benchmarks/gpu.py --output $(or $(OUT),runs/gpu)

# On such a machine, too: trains for eight minutes on rows that experiments/gpu_train/pack.py packed.
gpu-train:
	$(PYTHON) -m experiments.gpu_train.train --output $(or $(OUT),runs/gpu_train/output)

# The mark is written last, so an interrupted installation is started again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %d.%d: set PYTHON=python3.11, for instance." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt ".[train]"
	touch $@

$(VENV)/test-installed: $(VENV)/installed
	$(BIN)/python -m pip install --constraint constraints.txt ".[train,test,demo]"
	touch $@

$(VENV)/demo-installed: $(VENV)/installed
	$(BIN)/python -m pip install --constraint constraints.txt ".[demo]"
	touch $@
