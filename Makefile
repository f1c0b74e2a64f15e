# make quickstart   set up everything, train a hierarchical classifier, show what it predicts
# make test         set up everything, run the tests
# make benchmark DATA_DIR=...   rerun the comparison on frozen features and write its tables (ARGS: options of frozen.py)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: install quickstart test benchmark quality format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "hcal_hf needs Python 3.11 or later, found " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/python recipes/quickstart/prepare.py
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/train.py recipes/quickstart/config.yaml
	$(BIN)/python recipes/quickstart/baseline.py

test: install
	$(BIN)/python -m pytest

benchmark: install
	@test -n "$(DATA_DIR)" || { echo "Give the folder of the data sets: make benchmark DATA_DIR=... (see recipes/benchmarks/README.md)"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python recipes/benchmarks/frozen.py --data_dir $(DATA_DIR) --jobs 2 $(ARGS)
	$(BIN)/python recipes/benchmarks/results.py --data_dir $(DATA_DIR)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
