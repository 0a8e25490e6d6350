# `make demo` and `make test` are all that a fresh machine with Python 3.11 needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS ?=
# One process for each core, up to eight: each holds torch, and a model now and then, in memory.
CORES ?= logical

.PHONY: demo test lint docs attacks faults fuzz concurrency bench-toy clean

demo: $(INSTALLED) ## teach nano a character, then ask, paint and edit; results in demo/
	$(BIN)/python examples/demo.py demo

test: $(INSTALLED) ## the whole suite, on every core and offline; CORES=0 takes one
	$(BIN)/pytest --numprocesses $(CORES) --maxprocesses 8 --dist worksteal $(TESTS)

lint: $(INSTALLED) ## what the suite also checks, alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

attacks: $(INSTALLED) ## packs, texts and paths of strangers: every one is refused or harmless
	PYTHONPATH=tests/attacks $(BIN)/pytest -q -p tally tests/concepts/test_attacks.py \
	  tests/concepts/test_digest.py tests/cli/test_terminal.py tests/attacks/test_sound.py \
	  tests/engine/test_checkpoint.py tests/engine/test_request.py

# With LOG=FILE the next two keep what is done there, and go on from it after an interruption.
faults: $(INSTALLED) ## fail, and die at, every call to the disk of every command that writes
	$(BIN)/python tests/attacks/disk_faults.py $(addprefix --log ,$(LOG))

MUTANTS ?= 200000

fuzz: $(INSTALLED) ## mutated packs through verify, and sound ones through every command
	$(BIN)/python tests/attacks/pack_mutants.py $(MUTANTS) $(addprefix --log ,$(LOG))

concurrency: $(INSTALLED) ## eight processes change one library for 30 seconds
	$(BIN)/python tests/attacks/library_races.py

docs: $(INSTALLED) ## the pages, in site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Goes on where it was interrupted; after a change of weights or judges: rm -r bench. JUDGES="toy clip" asks several, the first that is able.
CONCEPTS ?= 20
SEEDS ?= 3
WORKERS ?= 2
JUDGES ?= toy

bench-toy: $(INSTALLED) ## every method on characters that nano never met; results in bench/
	test -d bench/toyset || $(BIN)/op bench export-toy bench/toyset --concepts $(CONCEPTS)
	$(BIN)/op bench run bench/toyset -b nano --method all $(addprefix --judge ,$(JUDGES)) \
	  --seeds $(SEEDS) --workers $(WORKERS) -o bench/results > /dev/null
	$(BIN)/op bench report bench/results --data bench/toyset --html bench/report.html \
	  > bench/report.md
	cat bench/report.md

clean: ## remove the environment, and results of demo, docs and bench
	rm -rf $(VENV) demo bench site

# Installs again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . --group dev --group docs
	touch $@
