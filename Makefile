# `make demo` and `make test` set themselves up: a virtual environment, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo fuzz test test-slow test-subset test-compat bench lint docs pictures zoo corpora clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)  ## the main job on what the package ships; table in the terminal, figure on disk
	$(BIN)/kerple-eval demo --out out/demo

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -q -n 2

test-slow: $(STAMP)  ## the rest
	$(BIN)/python -m pytest -q -m slow

test-subset: $(STAMP)  ## the slow tests that CI runs, listed in tests/ci_subset.txt
	$(BIN)/python -m pytest -q -n 2 -m slow @tests/ci_subset.txt

test-compat: $(STAMP)  ## against lm-evaluation-harness, which the extra compat installs: some 30 packages
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,compat]"
	$(BIN)/python -m pytest -q tests/compat

fuzz: $(STAMP)  ## an hour of damaged files of every format; SECONDS=N for less
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),3600)

bench: $(STAMP)  ## speed and memory as ratios, into results/benchmarks: a quiet machine, some minutes
	$(BIN)/python -m tests.benchmarks

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## the documentation as a site, strictly, into out/site
	$(BIN)/mkdocs build --strict --quiet

pictures: $(STAMP)  ## the documentation's pictures: protocols as they plan, and those of results/ made small
	$(BIN)/python docs/pictures/draw.py
	$(BIN)/python docs/pictures/shrink.py

# The zoo, by the command a user would type: only the scheme differs, and in NAME-sN the seed. 9 hours of one
# core in all, on a machine that was busy otherwise too (the cards say how long each took). The package ships
# seed 1 of each; further seeds stand in results/zoo/models.
ZOO := kerple-log kerple-power alibi t5 rope sinusoidal nope
SEEDED := kerple-log alibi rope t5
zoo: $(STAMP)  ## train the shipped models again: hours
	for name in $(ZOO) $(SEEDED:=-s2) $(SEEDED:=-s3); do \
	  scheme=$${name%-s[0-9]}; seed=$${name#$$scheme}; seed=$${seed#-s}; \
	  home=kerple_eval/zoo; test "$$scheme" = "$$name" || home=results/zoo/models; \
	  test -e $$home/$$name/config.json || \
	  $(BIN)/kerple-eval train --scheme $$scheme --task sotu --length 512 --seed $${seed:-1} --steps 8000 \
	    --batch 4 --lr 1e-3 --threads 1 --store float16 --ngram 3 --out $$home/$$name || exit; \
	done

# Code and TeX manuals beside the zoo's prose: texts, 24 models, scores, tables and figures. Some 20 hours of
# one core; stop it and start it again as you like. Weights and cells go to out/corpora.
corpora: $(STAMP)  ## train and score on other texts: a day
	OMP_NUM_THREADS=1 $(BIN)/python results/corpora/run.py

clean:  ## remove what was made
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache
