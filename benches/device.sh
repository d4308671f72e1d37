#!/usr/bin/env bash
# Steps per second of training on a GPU, ours and PyTorch's on the same configurations, one after the other.
#
# Needs an NVIDIA GPU (sm_80 or newer) and its driver, NVRTC and cuBLASLt of CUDA 13 where the loader finds them (a CUDA
# toolkit, or `pip install nvidia-cuda-nvrtc nvidia-cublas` and LD_LIBRARY_PATH), and PyTorch with CUDA in the environment
# TASKVEC_BENCH_VENV (its wheels bring both libraries). TASKVEC_DEVICE_TRAINING names the example device_training where it
# was built on another machine. Says what is not measured, and why.
set -eu
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-5}
venv=${TASKVEC_BENCH_VENV:-target/bench-venv}
for lib in "$venv"/lib/python3*/site-packages/nvidia/cu13/lib; do
    [ -d "$lib" ] && export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader
else
    echo "NO GPU: nvidia-smi finds none; only what a step takes is said below"
fi
# Where nothing is compiled, name the program that was built elsewhere.
training=${TASKVEC_DEVICE_TRAINING:-target/release/examples/device_training}
[ -n "${TASKVEC_DEVICE_TRAINING:-}" ] ||
    cargo build --release --locked --quiet -p taskvec-science --features cuda --example device_training
"$training" "$seconds" "$@"
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    "$venv/bin/python" benches/pytorch_device.py --seconds "$seconds" ${1:+--only "$1"}
else
    echo "PyTorch: not measured (torch is not installed in $venv: python3 -m venv $venv && $venv/bin/pip install torch)"
fi
