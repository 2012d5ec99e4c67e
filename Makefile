# Each target does its own set-up; a second run is fast.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ROOMS := search spaces workers results service

.PHONY: demo serve test slow quick browser site lint links setup wheel clean

demo: $(STAMP)  ## search structures for MiniLM on the demo data, a few minutes on two cores
	HF_HUB_OFFLINE=1 $(BIN)/sparsearch run examples/demo.yaml --db sqlite:///demo.db

serve: $(STAMP)  ## pages and the REST API over the database of the demo
	$(BIN)/sparsearch serve --db sqlite:///demo.db

test: $(STAMP) links  ## every test but the slow ones, offline, three at a time: some wait for processes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow"

slow: $(STAMP)  ## the tests that take minutes each: a Ray cluster whose head is killed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

quick: $(STAMP)  ## the tests of single parts
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 2 -m unit

browser: $(STAMP)  ## the pages in a real Chromium, where there is one (apt install chromium)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'playwright' 'axe-playwright-python'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/service/test_browser.py

site: $(STAMP) links  ## the documentation as pages, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'open site/index.html, or run $(BIN)/mkdocs serve to search it'

lint: $(STAMP) links  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

setup: $(STAMP) links

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

links:  # mypy does not follow an editable install: show it the rooms under their import names
	mkdir -p .types/sparsearch  # two runs of make may do this at once
	ln -sf $(foreach f,$(wildcard sparsearch/*) $(ROOMS),../../$(f)) .types/sparsearch/

wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) .types build dist site *.egg-info demo.db*
