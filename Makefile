# `make demo` and `make test` need Python >= 3.10 with venv, and nothing else.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Python compiles what it imports: of all that is installed, little.  Without what it keeps of that, each process compiles torch and
# transformers again, which takes longer than most tests
unexport PYTHONDONTWRITEBYTECODE
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: install demo test test-slow docs gpu-check lint types format wheel clean

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch --editable ".[dev]"
	touch $(VENV)/.base $@

install: $(VENV)/.dev

demo: $(VENV)/.base
	$(VENV)/bin/textrl demo $(ARGS)

test: $(VENV)/.dev
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow $(ARGS)

# the site, into docs/_build/html; needs no network once everything is installed
docs: $(VENV)/.dev
	$(RUN) -m docs.generator
	$(RUN) -m sphinx -W --keep-going -q -j auto -b html docs docs/_build/html $(ARGS)
	$(RUN) -m sphinx -W --keep-going -q -j auto -b html -D language=zh_CN docs docs/_build/html/zh $(ARGS)
	@echo "open docs/_build/html/index.html"

# needs a CUDA device; writes docs/gpu.md
gpu-check: $(VENV)/.dev
	$(RUN) -m agents.benchmark.performance.gpu_check $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.dev
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: $(VENV)/.dev
	$(RUN) -m build

clean:
	rm -rf build dist *.egg-info docs/_build docs/generated $(VENV)
