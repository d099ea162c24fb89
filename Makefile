# make demo    train and evaluate a tiny judge on this machine, in minutes
# make test    run the test suite              (ARGS="-k window" selects tests)
# make lint    check format, style, types and the layers of imports
# make graph   print modules, imports, cycles and upward imports
# make notebooks  execute the notebooks in their small setting and store the outputs
# make lock    resolve requirements.lock from setup.py, keeping its versions where they still fit
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-from
# A shorter schedule than the experiment's; studies/spct.py runs the full one.
DEMO ?= --config.rl.steps=80 --config.meta_rm.comparisons=2000 --config.meta_rm.steps=500 --config.eval.comparisons=150
# Two processes, each with its own emulated devices; the tests of one file share a process. The
# files start in the order of tests/conftest.py: the longest first.
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
LOCK_SUM = $(shell cat requirements.lock setup.py | cksum)

.PHONY: demo test lint graph notebooks lock venv
.DEFAULT_GOAL := test

demo: venv
	$(BIN)/python launch/tpu.py --config experiments/spct_tiny.py --workdir runs/spct_tiny $(DEMO)

test: venv
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

graph: venv
	@$(BIN)/python .ci/import_graph.py

notebooks: venv
	$(BIN)/python notebooks/execute.py

# Reuses the environment while requirements.lock and setup.py are those that it was installed from.
venv:
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(LOCK_SUM)" ]; then \
	  set -e; echo "$(VENV): installing requirements.lock"; \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	  echo "$(LOCK_SUM)" > $(STAMP); \
	fi

lock: venv
	$(BIN)/python -m pip install --quiet uv
	( head -1 requirements.lock; $(BIN)/uv pip compile setup.py --extra data --extra serve --extra tensorboard --extra tpu --extra test --universal --python-version 3.11 \
	  --no-annotate --no-header --quiet -c requirements.lock ) > requirements.lock.new
	mv requirements.lock.new requirements.lock
