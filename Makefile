# Everything lives in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
RAY_LOG := $(VENV)/ray-tests.log

.PHONY: help demo photos test test-all test-cluster lint types bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt gradio.txt moto.txt cluster/aws.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[ray,wandb,dev]'
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-deps -r gradio.txt -r cluster/aws.txt -r moto.txt
	@touch $@

demo: $(READY)  ## Demo data, the whole chain on a CPU, a test score, three predictions
	PATH=$(BIN):$$PATH sh examples/demo.sh $(DEMO)

photos: $(READY)  ## The same path on parquet written by the datasets library
	PATH=$(BIN):$$PATH sh examples/photos.sh $(DEMO)/photos

test: $(READY) lint types  ## Lint, types and the tests; what CI runs
	@# Ray's tests beside all others: half of their time is waiting.
	$(BIN)/python -m pytest -p no:cacheprovider -m 'ray and not slow' > $(RAY_LOG) 2>&1 & ray=$$!; \
	$(BIN)/python -m pytest -m 'not ray and not slow'; others=$$?; \
	wait $$ray; ray=$$?; cat $(RAY_LOG); exit $$((others + ray))

test-all: $(READY) lint types  ## With the slow tests
	$(BIN)/python -m pytest

test-cluster: $(READY)  ## Root, Linux: ray up on hosts of this machine's kernel, and what dies there
	$(BIN)/python -m pytest -x -s tests/cluster

lint: $(READY)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Types
	$(BIN)/mypy

bench: $(READY)  ## Our way against the notebook's, printed as tables
	$(BIN)/python benchmarks/loader.py --size 256
	$(BIN)/python benchmarks/loader.py --size 512
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/prepare.py --data $(DEMO)/bench --size 512
	$(BIN)/python benchmarks/prepare.py --data $(DEMO)/bench --size 256
	$(BIN)/python benchmarks/prepare.py --data $(DEMO)/bench --size 256 --resample fast
	$(BIN)/python benchmarks/prepare.py --data $(DEMO)/bench --memory
	$(BIN)/python benchmarks/prepare.py --differences --size 256

clean:  ## Remove the environment and what make demo made
	rm -rf $(VENV) $(DEMO)
