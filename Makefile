# calm_jax. Every target makes .venv from requirements.txt first, and again when the pins change.
# Flags for the program go in ARGS: make pretrain EXP=calm_base ARGS="--transformer.layers 2"

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python
ARGS ?=

ifdef SEEDS
TABLE_SEEDS := --seeds $(SEEDS)
endif

.PHONY: help env pretrain table data report test longtest fuzz lint bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "ARGS=\"...\" passes flags on;  PYTHON=... chooses the interpreter (3.11 to 3.13)"

env:  ## make .venv from the pins (every other target does it too)
	@PYTHON="$(PYTHON)" .ci/environment

pretrain: env  ## run an experiment from recordings to report: EXP=calm_base
	@if [ -z "$(EXP)" ]; then echo "error: no experiment named. make pretrain EXP=calm_base; there are:" \
	  $(filter-out __init__,$(basename $(notdir $(wildcard experiments/*.py)))) >&2; exit 2; fi
	@GLIBC_TUNABLES=$${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} exec $(PY) -m calm_jax pretrain $(EXP) $(ARGS)

table: env  ## run a table of experiments: EXP=poyo_ssl_table3 SEEDS=3
	@if [ -z "$(EXP)" ]; then echo "error: no table named. make table EXP=poyo_ssl_table3 SEEDS=3" >&2; exit 2; fi
	@GLIBC_TUNABLES=$${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} exec $(PY) -m calm_jax table $(EXP) $(TABLE_SEEDS) $(ARGS)

data: env  ## build a data set: NAME=interchange SOURCE=folder
	@if [ -z "$(NAME)" ]; then echo "error: no data set named. make data NAME=interchange SOURCE=folder" >&2; exit 2; fi
	@exec $(PY) -m calm_jax data $(NAME) $(if $(SOURCE),--source "$(SOURCE)") $(ARGS)

report: env  ## write the report of a run again: RUN=runs/calm_base
	@if [ -z "$(RUN)" ]; then echo "error: no run named. make report RUN=runs/calm_base" >&2; exit 2; fi
	@exec $(PY) -m calm_jax report $(RUN) $(ARGS)

test: env  ## the tests, within 15 minutes on two cores
	@exec $(PY) -m pytest -n 2 --dist loadfile -m "not long" $(ARGS)

longtest: env  ## all tests, with those that take longest
	@exec $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

fuzz: env  ## read 2,600 damaged recordings of all formats; ARGS="--count 10000"
	@exec $(PY) -W ignore -m tests.fuzz.run $(ARGS)

lint: env  ## check the style
	@$(PY) -m ruff check --quiet . && echo "lint: fine"

bench: env  ## measure speed; by hand, on an idle machine
	@set -e; for f in benchmarks/[a-z]*.py; do echo "== $$f"; $(PY) $$f $(ARGS); done

clean:  ## remove caches; runs, data sets and .venv stay
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
