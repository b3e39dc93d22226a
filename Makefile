# make bench    the main job: MViT v1-B and v2-S on a video clip, eager PyTorch against mvit_kernels
# make test     lint and the test suite
#
# Each makes a virtual environment, installs torch and the package into it, builds the C++ library and runs. What is
# already there is reused: packages until pyproject.toml changes, object files until their sources change.
#
#   PYTHON=python3.12      the Python that makes the environment
#   VENV=/path/to/env      an environment to use, made if it is not there
#   MAX_JOBS=8             compile jobs
#   MVIT_KERNELS_CUDA=auto build the CUDA library too, where there is nvcc (default: on a machine with an NVIDIA GPU)
#   BENCH="--help"         arguments of `python -m mvit_kernels bench`, instead of the two models
#   PYTEST="-k pool"       further arguments of pytest

PYTHON ?= python3
VENV ?= .venv
BENCH ?= --model torchvision:mvit_v1_b --model torchvision:mvit_v2_s
PYTEST ?=

BIN := $(VENV)/bin
PACKAGES := $(VENV)/.mvit_kernels-packages
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MVIT_KERNELS_CUDA ?= $(if $(wildcard /dev/nvidiactl),auto,off)

.DELETE_ON_ERROR:
.PHONY: help bench test lint build benchmarks clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

bench: build ## time the models on a video clip
	$(BIN)/python -m mvit_kernels bench $(BENCH)

test: lint build ## lint, then every test
	$(BIN)/python -m pytest -q $(PYTEST)

benchmarks: build ## time ops, layers, blocks and models against their alternatives
	$(BIN)/python -m pytest -q benchmarks $(PYTEST)

# A tool the environment does not have is named and left out.
tool = if [ -x $(BIN)/$(firstword $(1)) ]; then $(BIN)/$(1); else echo "lint: no $(firstword $(1)), left out"; fi

lint: $(PACKAGES) ## formatting, style and types; changes nothing
	@$(call tool,ruff check --quiet .)
	@$(call tool,ruff format --check --quiet .)
	@$(call tool,mypy)
	@$(call tool,clang-format --dry-run -Werror $(shell find csrc examples -name '*.h' -o -name '*.cpp' -o -name '*.cu'))

build: $(PACKAGES) ## the C++ library, into mvit_kernels/lib
	@MVIT_KERNELS_REQUIRE_CPP=1 $(BIN)/python setup.py --quiet build_ext --inplace

# torch first and by itself: it is what the C++ library is built against. The second line is build-system.requires of
# pyproject.toml, which pip leaves to us with --no-build-isolation.
$(PACKAGES): pyproject.toml | $(BIN)/python
	@echo "installing packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet torch torchvision
	@$(BIN)/python -m pip install --quiet "setuptools>=77" wheel "packaging>=24.2" "cmake>=3.18" ninja
	@MVIT_KERNELS_REQUIRE_CPP=1 $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[bench,test,lint]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean: ## remove what a build made; the environment stays
	rm -rf build dist mvit_kernels/lib *.egg-info
