# The targets a newcomer needs. Everything runs in .venv, which is made when first needed.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTS ?=
JOBS ?= 2

.PHONY: demo test check site docs clean

demo: $(INSTALLED)          ## the whole journey on a rendered cohort; ends with a report
	$(BIN)/medisent demo --out demo

test: check                 ## the checks, then every test that needs no GPU or patience, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

check: $(INSTALLED)         ## style, types, floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

site: $(INSTALLED)          ## the documents as a site, in build/docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env docs build/docs

docs: site                  ## the site; then what the documents show is run, and their links followed
	$(BIN)/python -m pytest tests/test_docs.py tests/test_gallery.py -m "not gpu"

clean:                      ## everything that can be made again, .venv too
	rm -rf .venv demo runs dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find medisent tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
