#!/usr/bin/env bash
# Every timing that the docs speak of, on this machine, with its peer in the same run. Asserts nothing.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never

section() { printf '\n== %s\n' "$1"; }

section "training on CPU: steps per second, against PyTorch"
benches/training.sh

section "task decodability on CPU: beside training, and against scikit-learn"
benches/decodability.sh

section "training on a GPU: steps per second, against PyTorch"
benches/device.sh

section "prompts of a language model: per second, against transformers and llama.cpp"
benches/language.sh

section "10 000 empty jobs through server, Postgres and 2 workers; latency when idle"
benches/jobs.sh

section "checkpoints: MB/s against cp and COPY"
cargo bench --locked --quiet --bench storage

section "scheduler alone: events per second"
cargo run --release --locked --quiet -p taskvec-sched --example throughput

section "result views: 1 000 runs x 24 checkpoints x 13 layers; metric rows per second against COPY"
cargo bench --locked --quiet -p taskvec-store --bench views

section "operations: fused against plain"
cargo bench --locked --quiet -p taskvec-kernels --bench ops
cargo bench --locked --quiet -p taskvec-kernels --bench language
