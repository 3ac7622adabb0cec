# `make train` and `make test` need Python 3.10 to 3.13 with pip, and nothing else.
PYTHON ?= python3
VENV   ?= .venv
base   := $(VENV)/.base
ready  := $(VENV)/.ready
docs   := $(VENV)/.docs

.PHONY: train test docs lint lint-code lint-format lint-types clean

train: $(base)
	$(VENV)/bin/python examples/digits.py --strategy=auto

# Where PYTHONDONTWRITEBYTECODE is set each of hundreds of processes would compile our own sources too.
test: $(ready)
	-@$(VENV)/bin/python -m compileall -q tfaccel strategies tests
	$(VENV)/bin/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

# A site in build/site, which opens from there. A link that leads nowhere is an error.
docs: $(docs)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "the site is build/site/index.html"

lint: lint-code lint-format lint-types

lint-code: $(ready)
	$(VENV)/bin/ruff check .

lint-format: $(ready)
	$(VENV)/bin/ruff format --check .

lint-types: $(ready)
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info

# Backbones for the tests. What keras-hub requests would bring TensorFlow's GPU build.
hub       = 'keras-hub>=0.32; python_version >= "3.11"'
hub_needs = kagglehub packaging regex sentencepiece tokenizers

# Each made once, and again when what it installs changes: what training needs, then all that the
# tests need.
$(base): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v[:2] <= (3, 13) else "tfaccel needs Python 3.10 to 3.13 and found %d.%d: run make PYTHON=/path/to/python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[cpu,examples]'
	@touch $@

$(ready): $(base) pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,mpi,tpu-check,fpga,examples,dev]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(hub_needs)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(hub)
	@# The tests start hundreds of processes: where PYTHONDONTWRITEBYTECODE is set each would compile
	@# TensorFlow's sources, which takes longer than all the rest of its start.
	-$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib
	@touch $@

$(docs): $(ready)
	@$(VENV)/bin/python -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "the documentation is built with Python 3.11 or newer: make docs PYTHON=/path/to/python3.12 VENV=.venv-docs")'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
