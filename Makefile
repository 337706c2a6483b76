# Every target makes .venv itself when it is missing or older than what it is made from.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.made
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint format types bench results docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=path")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/trebi demo --output runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow'

bench: $(STAMP)
	$(BIN)/trebi bench --output runs/bench.json

results: $(STAMP)
	$(BIN)/python -m trebi_gym.results

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/python scripts/check_types.py

docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,docs]'
	rm -rf build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --target build/docs-package .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
