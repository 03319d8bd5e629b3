# Every target sets itself up: a fresh machine needs Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The PyTorch that the tests are run with, to the digit: what its exporter writes changes from one to the next.
TORCH := torch==2.13.0

.PHONY: browser demo test lint types layers check docs bench clean

# The tour of the main job on a real model (magika's, taken from its PyPI wheel).
demo: $(VENV)/.demo
	$(BIN)/python examples/tour.py

# All tests. The real models are fetched from PyPI first; those already there are not fetched again.
test: $(VENV)/.dev browser
	$(BIN)/python tests/corpus/fetch.py --pip-only
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The browser that reports are looked at with. A machine of continuous integration gets Debian's; elsewhere it is left
# to the machine's owner, and the tests that need one are skipped where there is none.
browser:
	@if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && ! { command -v chromium && command -v chromedriver; } >/dev/null; then \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; \
	fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types layers

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/run.py

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,torch,trt]' '$(TORCH)'
	touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,torch,trt,peers]' '$(TORCH)'
	touch $@

clean:
	rm -rf $(VENV) demo-output build dist
