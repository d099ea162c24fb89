# make demo   train and evaluate a tiny judge on this machine, in minutes
# make test   the whole test suite          (ARGS="-k window" to choose)
# make lint   formatting, lint and types
# make lock   resolve requirements.lock again from setup.py, keeping the versions it has where they still fit
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-from
# Less of what takes longest and shows least: the study (experiments/study.py) has all of it.
DEMO ?= --config.rl.steps=80 --config.meta_rm.comparisons=2000 --config.meta_rm.steps=500 --config.eval.comparisons=150
LOCK_SUM = $(shell cat requirements.lock setup.py | cksum)

.PHONY: demo test lint lock venv
.DEFAULT_GOAL := test

demo: venv
	$(BIN)/python launch/tpu.py --config experiments/spct_tiny.py --workdir runs/spct_tiny $(DEMO)

test: venv
	$(BIN)/python -m pytest $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The environment is reused while the lock and setup.py are those it was made from, and brought up to them otherwise.
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
	( head -1 requirements.lock; $(BIN)/uv pip compile setup.py --extra tpu --extra test --universal --python-version 3.11 \
	  --no-annotate --no-header --quiet -c requirements.lock ) > requirements.lock.new
	mv requirements.lock.new requirements.lock
