# Thin targets over public commands; `make` alone lists them.
# Needs Python 3.11 or newer with its venv module, git and make. Everything else comes into .venv.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
# half as many again as processors: tests often wait for processes that they start
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN || echo 2); echo $$((n + n / 2)))

# a test that ends its process has failed: it is not begun again in another
XDIST = -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

BIN := $(VENV)/bin
PY := $(BIN)/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# stages are started by dvc as plain `python`
export PATH := $(abspath $(BIN)):$(PATH)

# 3.11 first: the committed figures were made with it, and the default corpus is its library
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null; then echo $$candidate; break; fi; done)

.PHONY: help setup repro test coverage lint format docs ui bench soak fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(BIN)/.dev ## install everything into .venv, and nothing more

repro: $(BIN)/.base ## install, run the pipeline (what is unchanged comes from the cache), sum it up
	@$(PY) -m pipeline.check
	@$(PY) -m dvc repro
	@$(PY) -m pipeline.summary

test: $(BIN)/.dev ## install, run all tests
	@$(PY) -m pytest $(XDIST)

coverage: $(BIN)/.dev ## run all tests and list the lines and branches that none of them reaches
	@$(PY) -m coverage erase
	@status=0; $(PY) -m coverage run -m pytest $(XDIST) $(TESTS) || status=$$?; \
	$(PY) -m coverage combine --quiet && $(PY) -m coverage report; exit $$status

lint: $(BIN)/.dev ## ruff (rules and format) and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(BIN)/.dev ## rewrite the code as `make lint` wants it
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

docs: $(BIN)/.dev ## build the pages of docs/ into site/, without network; a broken link is an error
	@$(PY) -m mkdocs build --strict --quiet
	@echo "open site/index.html"

ui: $(BIN)/.base ## open MLflow on the recorded runs
	@$(PY) -m pipeline.ui

bench: $(BIN)/.bench ## measure against the peers (ONLY=name for one figure); 30 to 50 minutes
	@$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY))
	@$(PY) -m docs.update_results

soak: $(BIN)/.dev ## inject every fault many times over and count (ONLY=row for one)
	@$(PY) -m benchmarks.soak $(if $(ONLY),--only $(ONLY))

fuzz: $(BIN)/.fuzz ## feed the loaders of files with nonsense (LIMIT=seconds for each, 120 by default)
	@$(PY) -m fuzz --seconds $(or $(LIMIT),120) $(ONLY)

clean: ## remove tool caches and build left-overs; keeps .venv, data, models, runs, checkpoints
	@rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './.dvc/*' \
		-exec rm -rf {} +

# --------------------------------------------------------------------------- installation
# Each stamp is written last, so an interrupted installation goes on at the next call.

$(BIN)/.base: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: found no Python 3.11 or newer with the modules venv and ensurepip;" >&2; \
		echo "install one (Debian: apt install python3 python3-venv) or name one:" >&2; \
		echo "make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$($(PYTHON) --version)"; \
		rm -rf "$(VENV)" && $(PYTHON) -m venv "$(VENV)"; fi
	@echo "installing packages into $(VENV) (about 2 GB; takes a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(BIN)/.bench: $(BIN)/.base
	@echo "installing the peers"
	@$(PIP) --editable '.[bench]'
	@touch $@

$(BIN)/.dev: $(BIN)/.base
	@echo "installing what tests and checks need"
	@$(PIP) --editable '.[dev]'
	@touch $@

$(BIN)/.fuzz: $(BIN)/.dev
	@echo "installing the fuzzer"
	@$(PIP) --editable '.[fuzz]'
	@touch $@
