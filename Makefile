# Two commands after a clone: `make run` and `make test`. Everything here needs Python 3.10+ and make, nothing else;
# .venv is made on the way. `make help` lists the targets.

PYTHON ?=
KAFKA ?=
# how much the proofs try
SEEDS ?= 100000
MINUTES ?= 10
# more words for pytest: make test ARGS="-k recount -x"
ARGS ?=
JOBS ?= auto

export KAFKA PYTHON
# compiled modules are kept: tests start hundreds of processes, and each would compile all of them anew
unexport PYTHONDONTWRITEBYTECODE
bin := .venv/bin
python := $(bin)/python
pytest := $(bin)/pytest -n $(JOBS) --maxprocesses 8 --dist worksteal
everywhere := not (browser or alerts or manifests or system or slow)

.DEFAULT_GOAL := help
.PHONY: help run unit test test-more test-all check lint types layers format lock simulate mutants chaos fuzz bench soak coverage package clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.made-run: locks/run.txt pyproject.toml
	@scripts/bootstrap.sh run

.venv/.made-dev: locks/dev.txt pyproject.toml
	@scripts/bootstrap.sh dev

run: .venv/.made-run ## the demo, or with SENTSTREAM_DATABASE_URL that database; KAFKA=1: the Kafka shape
	@scripts/run.sh

unit: .venv/.made-dev ## the pure core alone: no server, under half a minute
	$(bin)/pytest -n 2 -q tests/core $(ARGS)

test: .venv/.made-dev ## the tests that need Python, PostgreSQL and Kafka (both are started)
	$(pytest) -m "$(everywhere)" $(ARGS)

test-more: .venv/.made-dev ## the other tests: browser, alert rules, manifests, system packages, long ones
	$(pytest) -m "not ($(everywhere))" $(ARGS)

check: lint types layers ## linters, types, and which layer imports which

# the tests come last, so that pytest's own summary is the last line
test-all: check proofs-short test test-more ## all of it, as CI does

lint: .venv/.made-dev ## ruff: faults, and the layout that `make format` makes
	$(bin)/ruff check
	$(bin)/ruff format --check --quiet

types: .venv/.made-dev ## mypy --strict
	$(bin)/mypy

layers: .venv/.made-dev ## import-linter
	$(bin)/lint-imports

format: .venv/.made-dev ## lay out the code, and put right what ruff can
	$(bin)/ruff check --fix-only --exit-zero
	$(bin)/ruff format

lock: .venv/.made-dev ## newest versions within pyproject.toml's bounds into locks/
	scripts/lock.sh --upgrade

include scripts/proofs.mk

coverage: .venv/.made-dev ## branch coverage of the core by the pure tests; fails below what pyproject.toml asks for
	$(bin)/pytest -q tests/core tests/reconcile --cov --cov-report=term-missing:skip-covered

package: .venv/.made-dev ## sdist and wheel into dist/
	rm -rf dist
	$(python) -m hatchling build

clean: ## everything that was made here, .venv too
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
