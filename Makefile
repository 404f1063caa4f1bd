# `make` alone lists the commands. Each of them first builds .venv, or brings it up to date, if that
# is needed: tools/environment.py says how. With PYTHON=python3.12 it is built with that Python;
# with TORCH=cpu or TORCH=cuda it gets that build of PyTorch, GPU or no GPU.

VENV_PYTHON := .venv/bin/python
BOOK := $(VENV_PYTHON) -m ddpm_lite book

# tools/environment.py runs under any Python and looks for a suitable one itself.
STARTER := $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 $(PYTHON),\
	$(shell command -v $(name) 2>/dev/null)))

# Two processes, one thread each: numbers of threads beyond the cores only slow PyTorch down.
PYTEST := OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help environment read test lint press assignment student-wheel measure bench pins clean

help:
	@echo "The book's commands:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ $$2 = sprintf("%-14s", $$2); print "  " $$0 }'

environment:
	@$(if $(STARTER),$(STARTER) tools/environment.py,\
	echo "There is no python3 here: install Python 3.11, 3.12 or 3.13." >&2; exit 1)

read: environment  ## open the book in JupyterLab, in your own copy of it (my-book/)
	@$(BOOK) read

# Both halves run, whatever the first one finds, and either of them can turn the run red.
test: environment  ## test the library, then execute every chapter and compare every output
	@status=0; \
	$(PYTEST) tests || status=1; \
	$(PYTEST) --nbval chapters || status=1; \
	exit $$status

lint: environment  ## check style and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

press: environment  ## execute the chapters that changed and store their outputs
	@$(BOOK) press
	@$(BOOK) contents

assignment: environment  ## hand exercises out: make assignment NAME=ps1 EXERCISES="3.1 3.2"
	@$(BOOK) assign $(or $(NAME),ps1) --exercises $(EXERCISES) --out $(or $(OUT),course)

student-wheel: environment  ## build the library without solutions, for students
	@$(BOOK) student-wheel

measure: environment  ## repeat the long measurements that are out of date
	@$(VENV_PYTHON) -m ddpm_lite.measurements

bench: environment  ## time the library beside its peers
	@for program in benchmarks/*.py; do $(VENV_PYTHON) $$program || exit 1; done

pins: environment  ## write down the versions in .venv as constraints.txt
	@$(VENV_PYTHON) tools/pins.py

clean:  ## remove the environment and all caches; never my-book/
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find ddpm_lite tests tools chapters -name __pycache__ -exec rm -rf {} +
