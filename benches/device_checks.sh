#!/usr/bin/env bash
# On a GPU: language models against transformers and the CPU, the tests of its kernels under compute-sanitizer (memcheck, racecheck,
# initcheck, synccheck), and a profile of training by Nsight Systems. Says what it lacks.
#
# Needs what benches/device.sh needs, and compute-sanitizer and nsys of a CUDA toolkit.
set -eu
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "NO GPU: nvidia-smi finds none; nothing is checked"
    exit 0
fi
# Language models on two GPUs need a build of their own.
if command -v "${NVCC:-nvcc}" >/dev/null; then
    cargo test --locked --workspace --features candle-cuda --test on_gpu
else
    echo "NO NVCC: language models are not checked"
fi
if command -v compute-sanitizer >/dev/null; then
    # The programs of the tests, as cargo names them.
    programs=$(cargo test --locked --workspace --features taskvec-science/cuda --no-run --message-format=json \
        --test cuda_emulated --test cuda_extremes --test cuda_training --test cuda_attend --test cuda_at_once \
        --test cuda_rounding --test cuda_program --test stacked |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    for tool in memcheck racecheck initcheck synccheck; do
        for program in $programs; do
            echo "== $tool $(basename "$program")"
            compute-sanitizer --tool "$tool" --error-exitcode 1 "$program" --test-threads 1
        done
    done
else
    echo "compute-sanitizer: not run (not found; a CUDA toolkit brings it)"
fi
if command -v nsys >/dev/null; then
    training=${TASKVEC_DEVICE_TRAINING:-target/release/examples/device_training}
    [ -n "${TASKVEC_DEVICE_TRAINING:-}" ] ||
        cargo build --release --locked --quiet -p taskvec-science --features cuda --example device_training
    nsys profile --stats=true --cuda-graph-trace=node --force-overwrite=true --output target/device-training \
        "$training" 2 "${1:-quickstart}"
else
    echo "nsys: not run (not found; Nsight Systems brings it)"
fi
