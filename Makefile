# `make` lists what can be made.
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
WORKERS ?= 2

# Bits change with the number of threads; and two processes with a thread per core each are slower than one.
export OMP_NUM_THREADS ?= 1

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench table golden clean

help: ## list the targets
	@sed -nE 's/^([a-z.-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
	@echo
	@echo 'Variables: PYTHON=python3.12 (interpreter), WORKERS=4 (test processes),'
	@echo '           TORCH="torch --index-url https://download.pytorch.org/whl/cu128" (another build of torch).'

.venv: $(READY) ## set up the environment that the other targets use

# torch comes first and on its own, so that the build chosen is the one the rest finds in place.
$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/pip install --quiet -c .venv/constraints.txt $(TORCH)
	$(BIN)/pip install --quiet -c .venv/constraints.txt -e '.[dev]'
	touch $@

demo: $(READY) ## train SFL on handwritten digits, test it, compare seven methods, and say where to look
	$(BIN)/python train.py fit --config configs/experiments/demo.yaml
	$(BIN)/python train.py test --resume runs/sfl
	$(BIN)/python train.py sweep --config configs/experiments/demo_compare.yaml
	$(BIN)/python train.py compare runs/demo_compare --out runs/demo_compare/comparison
	@echo
	@echo 'One seed shows how the methods behave; which one is better takes more: sweep with --seeds 0,1,2, then compare again.'
	@echo 'Look: the comparison is a page, runs/demo_compare/comparison/index.html; curves: $(BIN)/tensorboard --logdir runs'
	@echo 'Again: make demo trains the first run anew and leaves finished runs of the comparison alone.'

test: $(READY) ## the quick tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow'

test-all: $(READY) ## all tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: $(READY) ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture

bench: $(READY) ## the figures in README and docs
	$(BIN)/python benchmarks/run.py

table: $(READY) ## train what the README's comparison is about, or what of it is missing, and write its table
	$(BIN)/python train.py sweep --config configs/experiments/compare_digits.yaml
	$(BIN)/python -m benchmarks.table runs/compare_digits

claims: $(READY) ## the experiments on what is claimed of HoloGrad; goes on where it was stopped
	$(BIN)/python benchmarks/holograd/run.py

golden: $(READY) ## record the golden curves anew; the difference is for review
	$(BIN)/python tests/golden/record.py

clean: ## delete what was made, except runs
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
