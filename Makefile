.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

.PHONY: help install demo test lint docs clean

help:
	@echo "make demo   install, score the 32 settings on synthetic miniatures, print the table"
	@echo "make test   install, run the unit tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documents and the API as web pages: artifacts/docs/index.html"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

# dvc starts a command for each item, one after the other, and each start takes seconds: two processes, a thread each, do
# all items, and dvc takes over what they wrote. Two progress bars would fight over one terminal, hence TERM=dumb.
define all_of
	dvc stage list --name-only $(1) | cut -d@ -f2 | TERM=dumb OMP_NUM_THREADS=1 xargs -P 2 -n $(2) crossearth $(1)
	dvc commit --force --quiet $(1)
endef

# A copy without .git, such as a zip from the web, is one without versions for dvc too.
demo: export PATH := $(abspath $(BIN)):$(PATH)
demo: install
	test -e .git || dvc config --local core.no_scm true
	dvc repro synthesize
	$(call all_of,ingest,4)
	dvc repro validate styles
	$(call all_of,train,7)
	$(call all_of,evaluate,7)
	dvc repro
	crossearth show
	@echo "next: . $(BIN)/activate    # in each new shell, before these commands and those of README.md"

# as many at a time as there are cores, a thread each; a file's fixtures are made once, in one process, and the files
# come in the order of tests/conftest.py
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/unit

lint: install
	mkdir -p .mypy_root/crossearth
	for layer in data model components pipelines; do ln -sfn ../../$$layer .mypy_root/crossearth/$$layer; done
	ln -sfn ../../components/api/__init__.py .mypy_root/crossearth/__init__.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p crossearth
	$(BIN)/mypy tests/benchmarks

docs: install
	$(BIN)/python docs/site.py artifacts/docs
	PDOC_ALLOW_EXEC=1 $(BIN)/pdoc -d google -o artifacts/docs/api $(addprefix crossearth.,data model components pipelines) '!crossearth.components.api'

clean:
	rm -rf artifacts .mypy_root
