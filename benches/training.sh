#!/usr/bin/env bash
# Steps per second of training, ours and PyTorch's on the same configurations, one after the other.
set -eu
cd "$(dirname "$0")/.."
threads=${THREADS:-$(nproc)}
cargo build --release --locked --quiet -p taskvec-science --example train_speed
venv=${TASKVEC_BENCH_VENV:-target/bench-venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet 'torch==2.15.*' numpy ||
        echo "PyTorch could not be installed into $venv: its rows are missing below"
fi
for n in $(printf '1\n%s\n' "$threads" | sort -nu); do
    RAYON_NUM_THREADS=$n target/release/examples/train_speed "$n"
    if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        "$venv/bin/python" benches/pytorch_train.py --threads "$n"
    else
        echo "PyTorch: not measured (torch is not installed in $venv)"
    fi
done
