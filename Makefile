# Each target makes .venv and installs what it needs; nothing has to be done before. Settings, on the command line:
#   PYTHON=python3.13   the interpreter that .venv is made with; by default the first of those below that is new enough
#   VENV=.venv-3.13     another place for it, to have several
#   ARGS='...'          options for the command that the target runs
PYTHONS := python3 python3.13 python3.12 python3.11 python
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
#   SEEDS, START, PROFILE=long, HARMLESS=1, MUTATIONS=1   of make simulate, see docs/reliability.md
SEEDS ?= 10000
START ?= 0
PROFILE ?= quick

.DEFAULT_GOAL := help
.PHONY: help demo test e2e simulate lint bench docs clean check-python peers

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.array ## a real computation on all three local schedulers
	@$(BIN)/python -m taskloom demo $(ARGS)

test: $(VENV)/.test ## the tests
	$(BIN)/python -m pytest $(ARGS)

simulate: $(VENV)/.test ## many simulated clusters in which everything goes wrong; SEEDS=10000
ifdef MUTATIONS
	@$(BIN)/python -m taskloom.testing.simulate --mutations --write docs/reliability.md $(ARGS)
else
	@$(BIN)/python -m taskloom.testing.simulate --seeds $(SEEDS) --start $(START) --profile $(PROFILE) \
	  $(if $(HARMLESS),--harmless) $(ARGS)
endif

e2e: $(VENV)/.test ## the operator, the chart and the images on a real Kubernetes; see e2e/run
	@PYTHON=$(BIN)/python ARGS='$(ARGS)' e2e/run

lint: $(VENV)/.lint ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench peers ## timings beside dask, distributed, ray and others; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.test ## run every example in README.md, docs/, examples/ and the docstrings
	$(BIN)/python -m pytest tests/taskloom/test_docs.py $(ARGS)

clean: ## forget the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# .venv/.made says that the environment is whole; .venv/.test and so on, that the extra of that name is installed.
# .venv/.unfinished says that something was begun: where it is still there at the next call, Ctrl-C or a lost machine
# has left half of it, which nobody can use, and it is made anew. What fails by itself (no network) leaves what is
# there as it was. The file holds the id of the process that is at work, for another make at the same time.
BEGIN = set -e; trap 'exit 130' INT TERM; echo $$$$ > $(VENV)/.unfinished
END = rm -f $(VENV)/.unfinished

ifneq ($(and $(filter-out help clean,$(MAKECMDGOALS)),$(wildcard $(VENV)/.unfinished)),)
AT_WORK := $(shell cat $(VENV)/.unfinished)
ifneq ($(shell kill -0 $(AT_WORK) 2>/dev/null && echo yes),)
$(error process $(AT_WORK) is installing into $(VENV) just now; try again when it is done)
endif
$(shell rm -f $(VENV)/.made)
endif

$(VENV)/.made:
	@set -e; trap 'exit 130' INT TERM; \
	if [ -x $(BIN)/python ] && [ ! -e $(VENV)/.unfinished ]; then \
	  if $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1; \
	  then touch $@; exit; fi; \
	fi; \
	new='import sys, venv; sys.exit(sys.version_info < (3, 11))'; python=; \
	for name in $(or $(PYTHON),$(PYTHONS)); do \
	  if "$$name" -c "$$new" >/dev/null 2>&1; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "taskloom needs Python 3.11 or newer, with its module venv; tried: $(or $(PYTHON),$(PYTHONS))." >&2; \
	  echo "Say which to use: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	rm -rf $(VENV); mkdir -p $(VENV); $(BEGIN); \
	"$$python" -m venv $(VENV); touch $@; $(END)

$(VENV)/.%: pyproject.toml constraints.txt $(VENV)/.made | check-python
	@echo "installing taskloom[$*] into $(VENV)"
	@$(BEGIN); \
	if $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'; \
	then touch $@; $(END); else $(END); exit 1; fi

# What the cluster is compared with, where the package index has it. What could not be installed is tried again next time;
# .no-NAME has what pip said, for the tables.
PEERS := distributed ray
peers: $(PEERS:%=$(VENV)/.bench-%)

$(PEERS:%=$(VENV)/.bench-%): $(VENV)/.bench-%: $(VENV)/.bench
	@echo "installing taskloom[bench-$*] into $(VENV)"
	@$(BEGIN); \
	if $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench-$*]' \
	  2>$(VENV)/.no-$*; \
	then rm -f $(VENV)/.no-$*; touch $@; \
	else echo "$* cannot be installed here; the benchmarks do without it: see $(VENV)/.no-$*" >&2; fi; $(END)

$(VENV)/.bench-ray: | $(VENV)/.bench-distributed  # one after the other, with -j too

# A PYTHON that was asked for and is another one than the environment has: say so instead of using the wrong one.
check-python: $(VENV)/.made
ifdef PYTHON
	@which='import sys; print("%d.%d.%d" % sys.version_info[:3])'; \
	has=$$($(BIN)/python -c "$$which"); wants=$$("$(PYTHON)" -c "$$which"); \
	if [ "$$has" != "$$wants" ]; then \
	  echo "$(VENV) has Python $$has, and PYTHON=$(PYTHON) is $$wants. Either 'make clean' first, or beside it:" >&2; \
	  echo "  make VENV=.venv-$$wants PYTHON=$(PYTHON) $(MAKECMDGOALS)" >&2; exit 1; \
	fi
endif
