# Every target sets itself up: an environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# apart from the rest: transformers imports torchvision, whose compiled part a torch for processors may not load
APART := .venv/apart

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
# two processes, each with a half of the tests in order, so that a module's fixtures are built once; the first that
# has finished takes over a part of the other's
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=50 -m

.PHONY: help demo gpu test test-slow test-all lint types faults faults-short format docs site versions dist clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "steppe needs Python 3.11 or newer; choose one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(APART)/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps -c constraints.txt \
		--target $(APART) torchvision timm \
		onnx onnxscript onnx_ir onnxruntime ml_dtypes protobuf flatbuffers
	@touch $@

demo: $(READY)  ## Compare five methods on the built-in digits; writes out/demo/report.html
	$(BIN)/steppe compare --out out/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/check_style.py

types: $(READY)
	$(BIN)/mypy

test: lint types  ## Lint, types and the fast tests: 6 minutes on two cores
	@mkdir -p out
	$(TESTS) 'not slow and not vision' | tee out/durations-fast.txt

test-slow: $(APART)/.ready  ## The tests that `make test` leaves out: marked slow or vision
	@mkdir -p out
	$(TESTS) 'slow and not vision' | tee out/durations-slow.txt
	PYTHONPATH=$(APART) $(TESTS) vision | tee out/durations-vision.txt

test-all: test test-slow  ## Every test: 25 minutes on two cores

faults: $(READY)  ## Break it on purpose, all of it: 45 minutes; writes docs/reliability.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults --write

faults-short: $(READY)  ## Break it on purpose, a few of each: 4 minutes
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults --short

# the machine's own Python and torch, which fit its driver; no network
GPU_PYTHON ?= python3
GPU_DEVICE ?= cuda
GPU_WHEELS ?= wheels
gpu:  ## Check and time everything on a GPU, in 7 minutes, without a network; GPU_DEVICE=cpu tries it on the processor
	$(GPU_PYTHON) -m benchmarks.gpu --device $(GPU_DEVICE) --wheels $(GPU_WHEELS) $(GPU_OPTIONS)

format: $(READY)  ## Put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Write the methods' pages from their cards
	$(BIN)/python docs/make_methods.py

site: $(READY)  ## Build the documentation's site, in site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

versions:  ## Test with the oldest and the newest torch, each in an environment of its own
	PYTHON=$(PYTHON) tests/versions.sh

dist: $(READY)  ## Build and check the wheel and the source distribution, in dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dist]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## Remove the environments, the demo and what was built
	rm -rf .venv .versions out dist site
