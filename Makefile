# `make` lists the targets. PYTHON chooses the Python that .venv is made of, ARGS goes to pytest.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN = $(VENV)/bin
export VENV

.DEFAULT_GOAL := help
.PHONY: help environment run run-rabbitmq test test-slow test-all contract reliability matrix chaos model bench scale leak screenshots docs lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## the demo site and its consumer in this terminal, on SQLite and the embedded broker (PORT, ADMIN_PASSWORD)
	@$(PYTHON) -m tools.run

run-rabbitmq: ## the same on RabbitMQ, with a private node where none is reachable at MESSAGING_URL
	@$(PYTHON) -m tools.run --rabbitmq

test: ## the tests, with private RabbitMQ and PostgreSQL servers
	@$(PYTHON) -m tools.test $(ARGS)

test-slow: ## what `make test` leaves out: the long ones, and all on a private MariaDB server
	@$(PYTHON) -m tools.test --slow $(ARGS)

test-all: ## both of these
	@$(PYTHON) -m tools.test --all $(ARGS)

contract: ## what every backend promises, as a table: test, backend, database (ARGS=--mariadb)
	@$(PYTHON) -m tools.contract $(ARGS)

reliability: ## every failure mode, as a table with its result (ARGS=--write notes it in docs/reliability.md)
	@$(PYTHON) -m tools.reliability $(ARGS)

matrix: ## the tests on each version of Python, Django and servers that is here (ARGS=--write notes it in docs/reference/versions.md)
	@$(PYTHON) -m tools.matrix $(ARGS)

chaos: ## a soak under random faults, which ends with a proof by query (MINUTES, SEED, BROKER=embedded, KEEP=1)
	@$(PYTHON) -m tools.chaos

model: environment ## the protocol's model in full sizes, and its rules broken one by one (STATES, PROCESSES)
	@$(BIN)/python -m tests.model

bench: ## how fast it is, beside raw floors and peers (QUICK=1; more in docs/benchmarks.md)
	@$(PYTHON) -m benchmarks

scale: ## what a message costs in tables of 10,000 rows and of ROWS=10000000
	@$(PYTHON) -m benchmarks.scale

leak: ## whether a consumer's memory stays what it is over MESSAGES=1000000
	@$(PYTHON) -m benchmarks.leak

screenshots: environment ## every page of the console into var/screenshots, and the pictures of the docs into docs/images
	@$(PYTHON) -m tools.packages chromium fonts-wqy-microhei
	@$(BIN)/python -m tools.screenshot

docs: environment ## the documentation as a site in var/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open var/docs/index.html"

environment: ## .venv with what requirements-dev.txt lists
	@$(PYTHON) -m tools.environment

lint: environment ## style, types, import contracts, migrations, system checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	ENV_FILE=/dev/null DATABASE_URL=sqlite://:memory: $(BIN)/python manage.py makemigrations --check --dry-run
	ENV_FILE=/dev/null DATABASE_URL=sqlite://:memory: $(BIN)/python manage.py check --fail-level WARNING

format: environment ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## forget .venv, caches and the demo site's data
	rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
