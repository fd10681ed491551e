# `make demo` and `make test` need only Python 3.11 or newer; everything else they install into .venv.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

export SCALING_CACHE ?= $(CURDIR)/.cache

.PHONY: demo test test-slow check install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, not {sys.version}; set PYTHON="'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# Train 5 iso-FLOP budgets on the source text of Python's standard library, fit the laws, draw the curves.
demo: install
	$(BIN)/scaling plan configs/demo.py
	$(BIN)/scaling sweep configs/demo.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m 'not slow and not engines' --numprocesses auto --dist loadfile
	$(BIN)/python -m pytest -m 'engines and not slow'

test-slow: install
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .venv .cache results
