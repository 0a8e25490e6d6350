# `make demo` and `make test` are all that a fresh machine with Python 3.11 needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS ?=

.PHONY: demo test lint clean

demo: $(INSTALLED) ## teach nano a character, then ask, paint and edit; results in demo/
	$(BIN)/python examples/demo.py demo

test: $(INSTALLED) ## the whole suite, on the CPU and offline
	$(BIN)/pytest $(TESTS)

lint: $(INSTALLED) ## what the suite also checks, alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove the environment and the demo's results
	rm -rf $(VENV) demo

# Installs again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev
	touch $@
