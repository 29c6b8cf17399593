# Everything a fresh machine needs: python 3.11 or newer. `make demo` and `make test` set up the rest.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?=
# Most tests wait for processes: more run at a time than there are cores. Tests of one file share its servers. Files run in
# the order of their folders: the long ones come first, and no process is left alone with one of them at the end.
PARALLEL ?= --numprocesses=3 --dist=loadfile --no-loadscope-reorder

FAULTS ?= --all

.PHONY: demo test check unit servers faults matrix format docs translations clean

demo: $(VENV)/installed ## place the shop's orders through a real worker, with no server (ORDERS=file for yours)
	$(BIN)/python -m tasks.demo $(ORDERS)

test: check docs servers ## everything that CI runs
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

unit: $(VENV)/installed ## the tests that need no server
	$(BIN)/python -m pytest tests/unit tests/architecture

check: $(VENV)/installed ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: $(VENV)/installed servers ## storms of faults, for an hour; FAULTS="--sagas 500 --seconds 60 --seed 1" for one
	$(BIN)/python -m tests.faults.long $(FAULTS)

matrix: servers ## the versions that the library says it runs with (ROW=celery5.4 for those of that name)
	scripts/matrix $(ROW)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed ## draw the states and the sequence; build the site into site/, without a warning
	$(BIN)/python docs/generate_states.py
	$(BIN)/python docs/generate_sequence.py
	# Not --quiet: it would count no warnings.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

translations: $(VENV)/installed ## bring the catalogues of the Django parts up to date, and say what is not translated
	$(BIN)/python scripts/translations.py

servers: ## Redis, PostgreSQL, RabbitMQ, MariaDB, Kafka, which the tests start by themselves
	scripts/install-servers

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
