# Everything a person needs: `make train` learns, `make test` checks. All of it happens in $(VENV).
#
#   make train EXTRA=cuda        on NVIDIA GPUs (cuda12 for older drivers), EXTRA=tpu on TPUs
#   make test TESTS="-k resume"  a part of the tests
#   .venv/bin/python tests/benchmarks/tpu.py    what a TPU's compiler says of large models (EXTRA=tpu; needs no TPU)
#   make drill KILLS=200 DAMAGES=200 INPUTS=100000   the long form: an hour or two
#   make lock UPGRADE=--upgrade  newer versions of everything

.DEFAULT_GOAL := help

PYTHON ?= python3
UV ?= uv
VENV ?= .venv
EXTRA ?=
TESTS ?=
KILLS ?= 10
DAMAGES ?= 20
INPUTS ?= 2000
UPGRADE ?=

RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed$(if $(EXTRA),-$(EXTRA))
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: help train test lint bench drill lock clean

help:
	@echo "make train   train the default recipe on the devices present (EXTRA=cuda or tpu installs for them)"
	@echo "make test    run the tests on CPU"
	@echo "make lint    check format, lint and types"
	@echo "make bench   measure training, decoding and loading"
	@echo "make drill   kill and stop runs, damage checkpoints and files of all kinds, and see that nothing is lost"
	@echo "make lock    resolve the locked requirements again (needs uv)"
	@echo "make clean   remove environments and caches (runs/ stays)"

train: $(INSTALLED)
	$(RUN)/jumok train

test: $(INSTALLED_DEV)
	$(RUN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=worksteal $(TESTS)

lint: $(INSTALLED_DEV)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright --pythonpath $(RUN)/python

bench: $(INSTALLED)
	$(RUN)/python tests/benchmarks/bench.py

drill: $(INSTALLED_DEV)
	$(RUN)/python tests/drill/kill.py --kills $(KILLS)
	$(RUN)/python tests/drill/signals.py
	$(RUN)/python tests/drill/damage.py --times $(DAMAGES)
	$(RUN)/python tests/drill/foreign_files.py --inputs $(INPUTS)

# One resolution serves every Python from 3.11 on: where a newer Python has newer packages, the lock forks by markers.
lock:
	$(RESOLVE) --output-file requirements.lock
	$(RESOLVE) --extra test --extra lint --constraint requirements.lock --output-file requirements-dev.lock

RESOLVE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile pyproject.toml --group build --universal \
	--generate-hashes --no-emit-index-url --no-annotate --quiet $(UPGRADE)

clean:
	rm -rf .venv .venv-newest .cache .pytest_cache .ruff_cache .hypothesis jumok.egg-info

# Hash mode refuses an editable project, so the project follows its pinned dependencies in a second command. An
# extra's wheels come with versions that JAX pins itself.
$(INSTALLED): requirements.lock pyproject.toml | $(RUN)/pip
	$(RUN)/python -m pip install --require-hashes --requirement requirements.lock
	$(RUN)/python -m pip install --no-build-isolation $(if $(EXTRA),--editable ".[$(EXTRA)]",--no-deps --editable .)
	touch $@

$(INSTALLED_DEV): requirements-dev.lock pyproject.toml | $(RUN)/pip
	$(RUN)/python -m pip install --require-hashes --requirement requirements-dev.lock
	$(RUN)/python -m pip install --no-build-isolation --no-deps --editable .
	touch $@

# pip is the last thing that venv makes: one that failed halfway (as Debian's does without python3-venv) is made again.
$(RUN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found: jumok needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "%s is Python %d.%d, and jumok needs 3.11 or newer; name one with PYTHON=..." % ((sys.executable,) + sys.version_info[:2]))'
	"$(PYTHON)" -m venv $(VENV)
