# make demo   everything from nothing: set-up, then train, attack, evaluate and draw the front on embedded data
# make test   lint, types, unit and end-to-end tests
# make reproduce-table TABLE=smallcnn PROFILE=cpu   a table of the paper; without PROFILE what this machine can do
# make results   the pages of results/, the tables of the README and conf/README.md, from the records and from conf/
# make data   tests that need the real data sets (RDI_DATA)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# tests start many processes, which compile rdi anew where its bytecode is not kept
export PYTHONDONTWRITEBYTECODE :=

TABLE ?= smallcnn
PROFILE ?= null

.PHONY: demo reproduce-table results test lint types unit e2e data clean

demo: $(READY)
	$(BIN)/rdi run run=runs/demo

reproduce-table: $(READY)
	$(BIN)/rdi table name=$(TABLE) profile=$(PROFILE)

results: $(READY)
	PYTHONPATH=dev $(BIN)/python -m pages.results
	PYTHONPATH=dev $(BIN)/python -m pages.conf

test: lint types unit e2e

lint: $(READY)
	$(BIN)/ruff format --check src tests dev/pages
	$(BIN)/ruff check src tests dev/pages

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest tests/unit -n 2 --dist worksteal --durations=15 -m "not data and not gpu"

e2e: $(READY)
	$(BIN)/pytest tests/e2e -n 2 --dist worksteal --durations=15 -m "not data and not gpu"

data: $(READY)
	$(BIN)/pytest tests/e2e -n 2 -m data

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "rdi needs Python 3.11 to 3.13: make PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
