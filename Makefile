# make demo       merge the tiny model in fixtures/, verify it, inspect it; run a recipe, twice
# make test       lint, types and the fast tests
# make test-all   the same, with the slow tests
# make bench      time merges, resize, combine against cp and PEFT, and merges from and to a Hub
# make campaign   N=1000 random cases, judged by PEFT and transformers; SEED=17 replays one
#                 HALF=diffusion: denoisers of diffusers across layouts
# make lint       lint and types only
#
# PYTHON=python3.12 make ... picks the interpreter; it needs 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUNTIME := $(VENV)/.stamp-runtime
TESTING := $(VENV)/.stamp-test
PINS := pyproject.toml constraints.txt
DEMO := build/demo
RECIPE := build/recipe
FAST := not slow and not gpu and not bench
ALL := not bench
JOBS ?= 2
BENCH_ARGS ?=
N ?= 1000
FIRST ?= 0
SEED ?=
HALF ?= models

.PHONY: demo test test-all lint bench campaign clean

demo: $(RUNTIME)
	rm -rf $(DEMO) $(RECIPE)
	mkdir -p $(dir $(DEMO))
	$(BIN)/adaptool merge fixtures/base fixtures/adapter $(DEMO)
	$(BIN)/adaptool verify fixtures/base fixtures/adapter $(DEMO)
	$(BIN)/adaptool inspect fixtures/adapter $(DEMO)
	$(BIN)/adaptool run fixtures/recipe.yaml --set out=$(RECIPE)
	$(BIN)/adaptool run fixtures/recipe.yaml --set out=$(RECIPE)

test: lint
	$(BIN)/python -m pytest -m "$(FAST)" -n $(JOBS)

test-all: lint
	$(BIN)/python -m pytest -m "$(ALL)" -n $(JOBS)

lint: $(TESTING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(TESTING)
	$(BIN)/python tests/benchmarks/merge_speed.py $(BENCH_ARGS)
	$(BIN)/python tests/benchmarks/adapter_speed.py $(BENCH_ARGS)
	$(BIN)/python tests/benchmarks/hub_speed.py $(BENCH_ARGS)

campaign: $(TESTING)
	PYTHONPATH=tests $(BIN)/python -m campaign.run -n $(N) --first $(FIRST) --half $(HALF) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) build dist

# The environment is made again only when a pin changed.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null \
	  || { echo "error: $(PYTHON) not found; set PYTHON to Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 or newer is needed (PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): $(PINS) | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(TESTING): $(PINS) | $(VENV)/bin/python
	$(PIP) -e ".[test]"
	touch $(RUNTIME) $@
