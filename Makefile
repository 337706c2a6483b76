# Every target makes .venv itself when it is missing or older than what it is made from.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
STAMP := $(VENV)/.made
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-clients torture lint format types bench results results-page docs clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=path")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/trebi demo --output runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not clients'

bench: $(STAMP)
	$(BIN)/python -m scripts.bench --output runs/bench.json

results: $(STAMP)
	$(BIN)/python -m scripts.results

results-page: $(STAMP)
	$(BIN)/python -m scripts.results --page-only --unpack docs/results-cells.json.gz

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m 'slow and not clients'

# Other projects pin versions that clash with ours and with each other. What runs beside ours is installed without what
# it asks for; Safety-Gymnasium runs in a Python of its own, which must be 3.8 to 3.10.
CLIENTS := .venv-clients
SAFETY := .venv-safety
SAFETY_PYTHON ?= $(shell command -v python3.10 || command -v python3.9 || command -v python3.8)

$(CLIENTS)/.made: pyproject.toml constraints.txt tests/clients/clashing.txt
	rm -rf $(CLIENTS)
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev,clients]'
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement tests/clients/clashing.txt
	touch $@

$(SAFETY)/.made: tests/clients/safety.txt
	rm -rf $(SAFETY)
	test -z "$(SAFETY_PYTHON)" || ($(SAFETY_PYTHON) -m venv $(SAFETY) && \
	  $(SAFETY)/bin/python -m pip install --disable-pip-version-check --quiet --requirement tests/clients/safety.txt)
	mkdir -p $(SAFETY) && touch $@

test-clients: $(CLIENTS)/.made $(SAFETY)/.made
	TREBI_SAFETY_PYTHON=$(CURDIR)/$(SAFETY)/bin/python $(CLIENTS)/bin/python -m pytest -q -n 2 -m clients tests/clients

torture: $(STAMP)
	$(BIN)/python -m scripts.torture

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
	rm -rf $(VENV) $(CLIENTS) $(SAFETY) build dist site *.egg-info
