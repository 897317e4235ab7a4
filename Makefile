# `make help` lists the targets. Everything runs in .venv, which `make setup` makes once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

TABLE  ?= main
SCALE  ?= toy
SEEDS  ?= 1
SEED   ?= 0
PAPERS := $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard tables/*/*.toml)))))

# One table, as the command line takes it: METHOD, TABLE, SCALE, SEEDS, DATA="role=path ...", ARGS="anything else".
SIZE    = --scale $(SCALE) --seeds $(SEEDS) $(foreach item,$(DATA),--data $(item)) $(ARGS)
REQUEST = $(METHOD) --table $(TABLE) $(SIZE)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce-table reproduce-all plan leaderboard results test faults lint format bench doctor clean no-method

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  METHOD is one of: $(PAPERS)"
	@echo '  make reproduce-table METHOD=dtm [TABLE=main] [SCALE=smoke|toy|small|paper] [SEEDS=3] \'
	@echo '                       [DATA="imagenet=PATH ade20k=PATH coco=PATH"] [ARGS="..."]'

setup: $(STAMP)  ## install everything into .venv, once

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "mimbench needs Python 3.10 or newer; choose one with: make setup PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	@echo "Installing mimbench into $(VENV): some minutes, once."
	@$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --progress-bar off --quiet -e '.[dev]'
	@touch $@

reproduce-table: $(if $(METHOD),$(STAMP),no-method)  ## pretrain, fine-tune and render one table
	@$(BIN)/mimbench reproduce-table $(REQUEST)

reproduce-all: $(STAMP)  ## every paper's main table (TABLE=all: the ablations too)
	@$(BIN)/mimbench reproduce-all --table $(TABLE) $(SIZE)

plan: $(if $(METHOD),$(STAMP),no-method)  ## the graph of runs behind a table: cached, missing, cost
	@$(BIN)/mimbench plan $(REQUEST)

no-method:
	@echo 'Which table? Say METHOD=..., one of: $(PAPERS)'
	@echo 'For example: make $(firstword $(MAKECMDGOALS)) METHOD=$(firstword $(PAPERS))'
	@exit 2

leaderboard: $(STAMP)  ## every pretraining of the main tables, best first, as far as it is computed
	@$(BIN)/mimbench leaderboard $(SIZE)

results: SEEDS = 3
results: $(STAMP)  ## the main tables, as far as they are computed, into RESULTS.md; DTM's rows into README.md
	@$(BIN)/mimbench results README.md --table dtm $(SIZE)

test: $(STAMP)  ## the test suite (ARGS="-k word" narrows it)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(ARGS)

faults: $(STAMP)  ## damaged files and odd datasets drawn from SEED: is a wrong number shown? (ARGS="--case NAME")
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.campaign --seed $(SEED) $(ARGS)

lint: $(STAMP)  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)  ## let ruff fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)  ## how long --help, a training step and the toy table take here (ARGS: setup, data, store or cost)
	@$(BIN)/python benchmarks/run.py $(ARGS)

doctor: $(STAMP)  ## what is installed, what can run here, how to get the rest
	@$(BIN)/mimbench doctor

clean:  ## remove caches and rendered pages; keeps .venv, runs/ and data/
	@rm -rf build dist reports/out .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
