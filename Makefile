# `make demo` and `make test` need only a Python that constraints.txt names; everything else they install into .venv.
# They take the newest that runs; PYTHON= names another, by its version or its command.

PYTHONS := $(shell sed -n 's/^# Pythons: //p' constraints.txt)
OLDEST := $(lastword $(PYTHONS))
BIN := .venv/bin
STAMP := .venv/installed

export SCALING_CACHE ?= $(CURDIR)/.cache
# Where Python may keep no bytecode, every command compiles all that it imports anew: 10 s instead of 3 for `scaling fit`.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest test-engines test-slow check install clean anew

install: $(STAMP)

# Where PYTHON= is given, .ci/venv sees whether .venv is of that Python, and makes it anew if not.
ifdef PYTHON
$(STAMP): anew
endif

$(STAMP): pyproject.toml constraints.txt
	.ci/venv .venv $(or $(PYTHON),$(PYTHONS))

# Train 5 iso-FLOP budgets on the source text of Python's standard library, fit the laws, draw the curves.
demo: install
	$(BIN)/scaling plan configs/demo.py
	$(BIN)/scaling sweep configs/demo.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -m 'not engines and not slow' --numprocesses auto --dist loadfile --durations 20

# Schedulers, servers, groups of processes and chaos, one at a time.
test-engines: install
	$(BIN)/python -m pytest -m 'engines and not slow' --durations 20

test-slow: install
	$(BIN)/python -m pytest -m slow

# Python 3.11 has an older JAX than the others: every test module is imported, and those marked `smoke` are run.
test-oldest: install
	@if $(BIN)/python -V | grep -q ' $(OLDEST)\.'; then \
	    echo ".venv is of Python $(OLDEST): make test-oldest has nothing to add to make test"; \
	elif .ci/venv .venv-$(OLDEST) $(OLDEST); then \
	    .venv-$(OLDEST)/bin/python -m pytest -m smoke; \
	else [ $$? = 3 ] && echo "make test-oldest is skipped"; fi

clean:
	rm -rf .venv .venv-$(OLDEST) .cache results
