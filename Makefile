# The two commands of the README. Both set up all they need in .venv.

PYTHON ?= python3
BIN := .venv/bin
# one thread a test process: three of them share the machine, since many tests wait, and results do not depend on how
# many cores it has
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 SAYSEE_CACHE=.cache/tests

.PHONY: demo test lint check wheel-demo clean

demo: .venv/demo  ## ask the model in the package for drawings, and open the page to be spoken to
	$(BIN)/saysee demo

test: lint check wheel-demo  ## lint, types, tests with coverage, and the demo from a wheel in an empty environment

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: .venv/dev
	$(TEST_ENVIRONMENT) $(BIN)/pytest -n 3 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

wheel-demo: .venv/dev
	PYTHON=$(PYTHON) scripts/wheel_demo.sh

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .cache build dist demo
