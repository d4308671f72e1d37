#!/usr/bin/env bash
# What task decodability takes beside training, and its neighbours and votes beside scikit-learn's, one after the other.
set -eu
cd "$(dirname "$0")/.."
threads=${THREADS:-$(nproc)}
cargo build --release --locked --quiet -p taskvec-science --example td_speed
RAYON_NUM_THREADS=$threads target/release/examples/td_speed "$threads"
venv=${TASKVEC_BENCH_VENV:-target/bench-venv}
if ! "$venv/bin/python" -c 'import sklearn' 2>/dev/null; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet 'scikit-learn==1.9.*' ||
        echo "scikit-learn could not be installed into $venv: its rows are missing below"
fi
if "$venv/bin/python" -c 'import sklearn' 2>/dev/null; then
    "$venv/bin/python" benches/neighbours.py --threads "$threads"
else
    echo "scikit-learn: not measured (not installed in $venv)"
fi
