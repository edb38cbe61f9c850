# Oxydra's two commands are `make run` and `make test`; the rest is for people who change it.
# Everything is installed into $(VENV), nothing needs root. What this file knows of Python packages
# it reads from setup.cfg: a change there refreshes the environment on the next call.

VENV ?= .venv
JOBS ?= 0
PY := $(VENV)/bin/python
RUNNER := $(PY) bin/oxydra-runner --config .oxydra/runner.toml

RUFF := --isolated --line-length 100
RULES := --select E,F,I,UP,B,SIM,W,C4,PIE,RET,RUF --ignore RUF001,RUF002,RUF003
SCRIPTS := $(shell grep -lsI '^\#!.*python' bin/* guest/*)
SOURCES := oxydra guest tests examples $(SCRIPTS)

export SLOW

.PHONY: help run test check lint types bench bench-memory soak wheel clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.deps ## set up what is missing, start the daemon, open the terminal UI
	@test -f .oxydra/runner.toml || $(PY) bin/oxydra-runner init
	@$(RUNNER) status >/dev/null 2>&1 || $(RUNNER) start --detach
	@$(RUNNER) --tui

test: $(VENV)/.test ## run the tests; SLOW=1 adds the slow ones, JOBS=2 runs two files at once
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: lint types test ## everything a change must pass: lint, types, tests (docs and examples are tests)

lint: $(VENV)/.test ## ruff: rules and format
	@$(PY) -m ruff check $(RUFF) $(RULES) $(SOURCES)
	@$(PY) -m ruff format --check $(RUFF) $(SOURCES)

types: $(VENV)/.test ## mypy, strict
	@$(PY) -m mypy

bench: $(VENV)/.test ## measure start, rest, a turn, the loop and a crowd, with the method of each
	@$(PY) -m tests.bench $(ARGS)

bench-memory: $(VENV)/.test ## measure what memory finds again, in the conversations of DATA=<file>
	@$(PY) -m tests.bench.memory $(DATA)

soak: $(VENV)/.test ## kill what runs, again and again, for MINUTES=30; ARGS=container: in containers
	@$(PY) -m tests.soak $(or $(MINUTES),30) $(ARGS)

wheel: $(VENV)/.test ## build the wheel and the sdist into dist/
	@$(PY) -m build --outdir dist .

clean: ## remove what was built and the environment; .oxydra stays
	@rm -rf build dist .venv* *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------ the environment
# A stamp is touched last, so that an interrupted installation is taken up again. The program runs
# from the checkout; only what it depends on is installed, which needs no build and no import hook:
# in the versions of tests/constraints.txt, with which the suite ran. Where these can't be had, as on
# a Python that is newer than they are, pip chooses.

LOCK := $(wildcard tests/constraints.txt)
REQUIREMENTS = import configparser, sys; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	print(c["options"]["install_requires"], *(c["options.extras_require"][e] for e in sys.argv[1:]))

define install
$(PY) -c '$(REQUIREMENTS)' $(1) > $(VENV)/requirements.txt
@pip="$(PY) -m pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt"; \
  $$pip $(LOCK:%=-c %) || { echo "Once more, without the versions of the lock:" >&2; $$pip; }
endef

$(VENV)/.deps: setup.cfg $(LOCK) $(PY)
	@echo "Installing what Oxydra needs into $(VENV) ..."
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(MAKE) --no-print-directory $(PY); }
	@$(call install)
	@touch $@

$(VENV)/.test: $(VENV)/.deps
	@echo "Installing what the tests need into $(VENV) ..."
	@$(call install,test)
	@$(call install,embeddings) || \
	  echo "The extra embeddings could not be installed: its tests are skipped."
	@touch $@

# The first interpreter that is new enough and can make environments; PYTHON= names another one.
$(PY):
	@found=; for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=$$python; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  "$$python" -m venv --clear $(VENV) && exit 0; rm -rf $(VENV); exit 1; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Oxydra needs Python 3.11 or newer; looked for: $(or $(PYTHON),python3.11 to python3.13, python3)." \
	    "On Debian 12 or Ubuntu 24.04: apt install python3 python3-venv" >&2; \
	else \
	  echo "$$found cannot make a virtual environment: its venv or ensurepip module is missing." \
	    "On Debian or Ubuntu: apt install python3-venv" \
	    "(for this interpreter python$$($$found -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv)." >&2; \
	fi; exit 1
