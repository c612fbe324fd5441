.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := text,clip,s3,report,dask,fetch,dev

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurolens needs Python 3.11 or newer, found " + sys.version.split()[0] + "; name one with: make PYTHON=python3.12 …")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(STAMP)

.PHONY: help install demo test lint types bench docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything pinned in constraints.txt

demo: $(STAMP) ## train on digits and shapes, measure every checkpoint, write stores, plots and reports to demo/
	@$(BIN)/neurolens demo demo

test: $(STAMP) ## run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types, strictly
	$(BIN)/mypy

bench: $(STAMP) ## run the benchmarks: ours against the reference way, interleaved
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
