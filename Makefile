# make quickstart      install what the quickstart needs, classify lines of business from a code book, then with labels
# make test            install everything, run the fast tests in parallel
# make test-slow       install everything, run the slow tests: browser, extras, several processes, long trainings
# make reliability    run the long tests of tests/reliability, store their counts, write recipes/benchmarks/pages/reliability.md
# make docs            build the manual into site/
# make check-versions  build the package, try it in bare environments and with minimum versions (needs the package index)
# make quality         lint, formatting, types, spelling
# make format          fix formatting
# make benchmark DATA_DIR=...   rerun the comparison on frozen features and write its tables (ARGS: options of frozen.py)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without --constraint, pip may choose a newer torch with several gigabytes of CUDA libraries.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= auto
export TOKENIZERS_PARALLELISM = false

CASES ?= 1000000

.PHONY: install quickstart test test-slow reliability docs check-versions benchmark quality format clean

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "hcal_hf needs Python 3.11 or later, found " + sys.version'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[quickstart]'
	touch $@

$(VENV)/.installed: $(VENV)/.quickstart
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

quickstart: $(VENV)/.quickstart
	$(BIN)/python recipes/naics2012/run.py

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow --numprocesses $(WORKERS) --dist loadfile

reliability: install
	rm -f outputs/reliability.jsonl
	mkdir -p outputs
	OMP_NUM_THREADS=1 HCAL_FUZZ_CASES=$(CASES) HCAL_RELIABILITY_ROWS=outputs/reliability.jsonl $(BIN)/python -m pytest \
		tests/reliability/test_malformed_inputs.py tests/reliability/test_fuzzing.py tests/reliability/test_endurance.py \
		-m "reliability or not slow"
	$(BIN)/python recipes/benchmarks/reliability.py outputs/reliability.jsonl

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check-versions:
	PYTHON=$(PYTHON) .ci/check-versions

benchmark: install
	@test -n "$(DATA_DIR)" || { echo "Give the folder of the data sets: make benchmark DATA_DIR=... (see recipes/benchmarks/README.md)"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python recipes/benchmarks/frozen.py --data_dir $(DATA_DIR) --jobs 2 $(ARGS)
	$(BIN)/python recipes/benchmarks/results.py --data_dir $(DATA_DIR)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/codespell

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
