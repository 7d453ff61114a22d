# Each command makes its own virtual environment in .venv, once; it needs Python 3.11+, pip and git.
#   make demo    the whole paper on the embedded data: figures and a table in runs/, within ten minutes on two cores
#   make test    lint, types, the fast tests, and whether paper_checks.md agrees with them
#   make slow    the tests that take minutes        make cuda   the tests that need a CUDA device, and gpu-check
#   make explore the property tests fifty times, with random examples and in random order
#   make minimum the fast tests with the oldest versions of the dependencies, in an environment in .venv-minimum
#   make mutants 300 random mutants of the package, each against the tests that run its line: an hour; it resumes
#   make docs    the site with reference and tutorials, which it executes, in docs/_build/html
#   make lint    lint, types and formatting         make clean  remove what these commands made
#   make ledger  write paper_checks.md, its page and its figure from the tests' outcomes
#   make figures make all of figures/ again, except those of the verdicts (make ledger): many CPU hours
# On Linux without a GPU, TORCH_INDEX= (PyTorch's index of CPU builds) saves the download of the CUDA libraries.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
RUN = $(BIN)/python -m experiments
STAMP := $(VENV)/.installed
# Two test processes with one thread each: more threads only wait for each other. Bytecode is kept whatever the
# environment says, for collection takes twice as long without it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: help demo docs figures test ledger slow explore minimum mutants cuda lint clean install
help:
	@sed -n '2,11s/^# *//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11: choose another with make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the tested versions of constraints.txt"
	@$(BIN)/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[test]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(RUN) demo

# What the site needs, some sixty small packages of Sphinx and Jupyter, is installed for `docs` and `test` alone.
SITE_STAMP := $(VENV)/.installed-docs
SITE = rm -rf docs/_build docs/api/generated && PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W \
  --keep-going -c docs -d docs/_build/doctrees . docs/_build/html

$(SITE_STAMP): $(STAMP)
	@echo "installing what the site needs"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(SITE_STAMP)
	@$(SITE)
	@echo "wrote docs/_build/html/index.html"

# A stopped command resumes when it is run again. The extra "bench" installs the peers of the benchmark;
# neural-tangents needs a separate Python: make figures TANGENTS=env/bin/python
TANGENTS ?=
figures: $(STAMP)
	$(RUN) demo --out figures
	$(BIN)/python -m experiments.theory.front_page figures
	$(RUN) bounds --out figures
	$(RUN) lipschitz --out figures
	$(RUN) plateau --out figures
	$(RUN) ensemble --out figures
	$(RUN) laziness --out figures
	$(RUN) convergence --preset wide --out figures/wide
	$(RUN) drift --preset wide --out figures/wide
	$(RUN) equivalence --preset wide --out figures/wide
	$(RUN) correlation --preset glyph --out figures
	$(RUN) correlation --preset glyph-quick --out figures/glyph-quick
	$(RUN) stability --preset glyph --out figures
	$(RUN) stability --preset glyph-48 --out figures/glyph-48
	$(RUN) stability --preset glyph-5 --out runs/stability-glyph-5
	$(RUN) search --preset glyph-5 --out runs/glyph-5/search
	cp runs/stability-glyph-5/stability.* runs/glyph-5/search/cells.* runs/glyph-5/search/trace.* \
	  runs/glyph-5/search/genotype.json runs/glyph-5/search/search.json figures/glyph-5
	$(RUN) protocols --out figures
	$(RUN) table --preset glyphs --out figures
	$(RUN) table --preset glyphs-halving --out figures
	$(RUN) table --preset pictures --out figures
	$(RUN) benchmark --cases meta-gradient metantk ntk depthwise supernet --allocator both --out figures \
	  $(if $(TANGENTS),--neural-tangents-python $(TANGENTS))
	$(RUN) benchmark --cases scoring --name scoring --rounds 3 --out figures

test: $(SITE_STAMP)
	@echo "checking style and types, and building the site, whose tutorials the tests execute"
	@(export RUN_TUTORIALS=0; $(SITE)) & site=$$!; $(BIN)/ruff check -q . && $(BIN)/mypy --no-error-summary; \
	  checked=$$?; wait $$site && exit $$checked
	@echo "running the fast tests, and comparing paper_checks.md with their outcomes"
	@$(PYTEST) --ledger check

ledger: $(STAMP)
	@$(PYTEST) --ledger write

slow: $(STAMP)
	@echo "running the slow tests"
	@TANGENTS=$(TANGENTS) $(PYTEST) -m "slow and not cuda" --ledger slow

explore: $(STAMP)
	@for order in $$(seq 50); do echo "random order $$order"; HYPOTHESIS_PROFILE=exploring OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -m "hypothesis and not slow and not cuda" --hypothesis-seed=random \
	  --shuffle $$order || exit 1; done

# The lower bound of every dependency in pyproject.toml; the tools of the tests keep their tested versions.
OLDEST := .venv-minimum
minimum:
	@test -x $(OLDEST)/bin/python || { echo "making the virtual environment $(OLDEST)"; $(PYTHON) -m venv $(OLDEST); }
	@$(PYTHON) tests/oldest_versions.py > $(OLDEST)/oldest.txt
	@$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(OLDEST)/oldest.txt -e '.[test]'
	@PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 --dist worksteal

COUNT ?= 300
SEED ?= 0
mutants: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants.campaign --count $(COUNT) --seed $(SEED)

cuda: $(STAMP)
	@echo "running the tests that need a CUDA device"
	@$(BIN)/python -m pytest -q -m cuda
	@$(RUN) gpu-check

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	@rm -rf $(VENV) $(OLDEST) docs/_build docs/api/generated build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	@find mamltheory experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
