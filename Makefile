# `make demo` and `make test` are the two commands of the README; each sets up .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# So many tests, and pages of the docs, run side by side; a test therefore has one thread for its numbers.
WORKERS ?= 2
STAMP := $(VENV)/.installed

.PHONY: demo test lint types docs clean

demo: $(STAMP)
	$(BIN)/xgfm demo --out demo-output

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(VENV)/.docs-installed
	$(BIN)/sphinx-build -j $(WORKERS) -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) demo-output docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# constraints.txt pins what CI runs; the packages themselves come from pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "xgfm needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing packages into $(VENV); some minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev]"
	@touch $@

$(VENV)/.docs-installed: $(STAMP)
	@echo "installing packages of the docs into $(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,dev,docs]"
	@touch $@
