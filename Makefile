.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help install demo test lint clean

help:
	@echo "make demo   install, score the 32 settings on drawn miniatures, print the table"
	@echo "make test   install, run the unit tests and the pipeline test"
	@echo "make lint   ruff and mypy"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	$(BIN)/crossearth show

test: install
	$(BIN)/python -m pytest -q -m unit

lint: install
	mkdir -p .mypy_root/crossearth
	for layer in data model components pipelines; do ln -sfn ../../$$layer .mypy_root/crossearth/$$layer; done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p crossearth

clean:
	rm -rf artifacts .mypy_root
