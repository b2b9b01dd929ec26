# The commands of the workbench; `make help` lists them. Everything is installed into .venv and nothing outside it,
# except the browser of `make test` where there is none (tools/ensure_chromium.sh).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One empty file per finished installation: newer than what it was made from, it saves the next run the work.
APP := $(VENV)/.installed-app
TEST := $(VENV)/.installed-test
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help app test lint format clean constraints

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1 -- /p' Makefile

app: $(APP)  ## install, compile the CPU kernels once, and serve the page at 127.0.0.1:5006
	$(BIN)/workbench kernels --warm
	$(BIN)/workbench serve

test: $(TEST)  ## install with the test tools, find or bring a Chromium, compile the CPU kernels, and run every test
	tools/ensure_chromium.sh $(BIN)/python
	$(BIN)/workbench kernels --warm
	@echo 'Running the tests of the browser, whose report comes last, beside all others.'
	@$(BIN)/python -m pytest -m browser > $(VENV)/browser-tests.log 2>&1 & browser=$$!; \
	$(BIN)/python -m pytest -m 'not browser'; others=$$?; \
	wait $$browser; status=$$?; cat $(VENV)/browser-tests.log; [ $$status = 0 ] && exit $$others

lint: $(TEST)  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST)  ## let ruff sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything that can be made again
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# CUDA's packages depend on the machine, a local version such as +cpu is another build of the same code, and triton
# follows torch: each build of torch names the triton that it needs.
constraints: $(TEST)  ## write constraints.txt from what .venv holds
	$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools > $(VENV)/frozen
	sed -n '/^#/p' constraints.txt > $(VENV)/constraints
	sed -e 's/+.*//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' $(VENV)/frozen >> $(VENV)/constraints
	mv $(VENV)/constraints constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(APP): $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing into $(VENV); the first time this takes minutes.'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(TEST): $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing into $(VENV); the first time this takes minutes.'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@
