# make demo: everything to run the main job. make test: everything to pass the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export GOMP_SPINCOUNT ?= 10000

.PHONY: demo test lint docs install install-dev install-docs benchmark clean

demo: install
	$(BIN)/python train.py fit -c configs/rectified/digits.yaml --resume
	$(BIN)/python sample.py generate runs/digits/pipeline --output out/digits --n 100 --overwrite
	$(BIN)/python sample.py evaluate runs/digits/pipeline --data digits --output out/digits/report.json
	@echo "picture: out/digits/grid.png"

test: install-dev
	$(BIN)/python -m pytest

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: install-docs
	$(BIN)/python -m mkdocs build --strict
	@echo "pages: build/docs/index.html"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-docs: $(VENV)/.installed-docs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	@touch $@ $(VENV)/.installed

benchmark: install-dev
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) runs out build
