# make demo | test | test-all | lint | faults | prove | bench | docs | release-check
# Another interpreter or environment: make test PYTHON=python3.12 VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all unit lint format faults prove gpu bench pages docs release-check clean

help:
	@echo "make demo      the whole road on a synthetic world, minutes on two cores"
	@echo "make test      quick tests, ruff, import-linter, mypy"
	@echo "make test-all  every test that needs no GPU, slow and fault tests included"
	@echo "make lint      ruff, import-linter, mypy"
	@echo "make faults    kills, full disks, fuzzing"
	@echo "make prove     the same by the hundred, and 4 GiB of datasets held against their sources"
	@echo "make bench     the benchmarks, one after the other"
	@echo "make pages     the pages of docs/ that are made from code and results"
	@echo "make docs      those, and the site in site/, checked; it opens without a network"
	@echo "make release-check  wheel and sdist, built and tried in an empty environment"

demo: $(INSTALLED)
	$(BIN)/glint demo demo

test: lint unit

unit: $(INSTALLED)
	$(PYTEST)

test-all: lint
	$(PYTEST) -m 'not gpu'

faults: $(INSTALLED)
	$(PYTEST) -m faults

prove: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/prove.py $(PROVE)

gpu: $(INSTALLED)
	$(BIN)/python -m pytest -q -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	@set -e; for script in $(filter-out benchmarks/figures.py benchmarks/real_sets.py benchmarks/unlike_sets.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

pages: $(INSTALLED)
	$(BIN)/python docs/make_errors.py
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_benchmarks.py
	$(BIN)/python docs/make_plan.py
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_recipe_keys.py
	$(BIN)/python docs/make_terminal.py

# Strict: a broken link or anchor, or a page that the menu leaves out, is an error.
docs: pages $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

$(VENV)/.docs: pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[docs]'
	@touch $@

release-check: $(INSTALLED)
	.ci/release $(BIN)/python $(PYTHON)

# The virtual environment: made when absent, brought up to date when pyproject.toml changes.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "glint needs Python 3.10 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf build dist demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
