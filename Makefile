# Each target makes .venv and what it needs by itself; nothing has to be done before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp a set of extras: the environment is made once and installed into again when pyproject.toml changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "taskloom needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.12")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing taskloom[$*] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/.array ## a real computation on all three local schedulers
	@$(BIN)/taskloom demo $(ARGS)

test: $(VENV)/.test ## the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench ## timings beside dask, joblib and others; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.test ## check that the examples in README and docs run
	$(BIN)/python -m pytest tests/taskloom/test_docs.py $(ARGS)

clean: ## forget .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
