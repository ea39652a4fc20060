# Two commands do all the set-up on a fresh machine with Python 3.11 or newer:
#   make train   trains configs/digits.py (ARGS="--config=..." for another)
#   make test    runs the tests

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

TESTS := -m pytest --numprocesses=auto --dist=loadscope

.PHONY: train test coverage test-all mutants versions wheel check fuzz bench soak results compare paper paper-full

train: .venv/installed
	$(BIN)/python train.py $(or $(ARGS),--config=configs/digits.py)

test: .venv/installed-dev
	$(BIN)/python $(TESTS)

# The same, and which lines of the package they miss; on Python 3.11 in half as much time again.
coverage: .venv/installed-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The same, with the tests that measure every claim, and a benchmark, at its smallest size.
test-all: .venv/installed-dev
	$(BIN)/python $(TESTS) -m "slow or not slow"

# Plants the field's classic defects, one at a time; fails if the tests named for one stay green.
mutants: .venv/installed-dev
	$(BIN)/python -m tests.mutants $(ARGS)

# A few of the tests (.ci/smoke.txt) with the lowest versions of all dependencies, and on later Pythons.
versions: .venv/installed-dev
	.ci/versions install .versions
	.ci/versions test .versions

# Builds wheel and sdist, and uses them in empty environments on two Pythons.
wheel: .venv/installed-dev
	.ci/wheel

# Lint, format and types.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# 10,000 malformed files for each parser of data sets (10 minutes); ARGS="--seed=1", "--only=archive", ...
fuzz: .venv/installed-dev
	$(BIN)/python -m tests.data.fuzz $(ARGS)

# What decoupling costs and gains, with baselines: runs/bench/bench.html and bench.json (ARGS=--quick for a trial).
bench: .venv/installed
	$(BIN)/python -m benchmarks.run $(ARGS)

# Does the memory of train.py grow? Half an hour of training, with checkpoints and evaluation: runs/soak/soak.json.
soak: .venv/installed
	$(BIN)/python -m benchmarks.soak $(ARGS)

# How near decoupled networks come to backprop on Fashion-MNIST, learning rates chosen for each method (40 minutes on
# 2 cores); ARGS="--network=deep", "--epochs=5", ...
results: .venv/installed
	$(BIN)/python -m experiments.accuracy $(ARGS)

# U17's table, measured: every method on digits (5 minutes), or ARGS=--config.dataset=fashion_mnist (40).
compare: .venv/installed
	$(BIN)/python -m experiments.compare $(ARGS)

# What U17 and J16 claim, measured: runs/paper/index.html and claims.json (about 10 minutes); paper-full: more seeds, on
# MNIST, or Fashion-MNIST where that is not at hand (more than an hour).
paper: .venv/installed
	$(BIN)/python -m experiments.paper $(ARGS)

paper-full: .venv/installed
	$(BIN)/python -m experiments.paper --size=full $(ARGS)

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
