# Everything is installed into .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
COMPILED := $(wildcard lightning_sphere/measurement/host_kernel*.[ch])
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser bench lint types format clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

demo: .venv/installed-examples ## train a real network with the callback, print the summary (ARGS="--optimizer sgd")
	$(BIN)/python examples/01_digits_resnet.py $(ARGS)

test: .venv/installed-dev ## all tests but the slow ones and those that need a browser (ARGS for pytest)
	$(BIN)/python -m pytest $(ARGS)

test-slow: .venv/installed-dev ## tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: .venv/installed-dev ## tests that look at TensorBoard in Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

bench: .venv/installed-dev ## what watching a training costs, a quarter of an hour (ARGS="--quick")
	$(BIN)/python -m benchmarks.overhead --output benchmarks.json $(ARGS)

lint: .venv/installed-dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev ## types
	$(BIN)/mypy

format: .venv/installed-dev ## bring the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the other commands made
	rm -rf .venv runs build benchmarks.json *.egg-info lightning_sphere/measurement/_host_kernel.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-examples: .venv/bin/python pyproject.toml constraints.txt $(COMPILED)
	$(PIP) --editable '.[examples]'
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt $(COMPILED)
	$(PIP) --editable '.[dev]'
	touch $@
