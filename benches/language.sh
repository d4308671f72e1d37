#!/usr/bin/env bash
# Prompts of SmolLM2-135M analysed per second: ours, HuggingFace transformers' and, with LLAMA=1 or where it is installed,
# llama.cpp's, one after the other.
set -eu
cd "$(dirname "$0")/.."
threads=${THREADS:-$(nproc)}
model=target/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$model" ] && ! make models; then
    echo "language models: not measured ($model could not be fetched)"
    exit 0
fi
cargo build --release --locked --quiet -p taskvec-science --example language_speed
venv=${TASKVEC_BENCH_VENV:-target/bench-venv}
if ! "$venv/bin/python" -c 'import torch, transformers, accelerate, gguf' 2>/dev/null; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet 'torch==2.15.*' 'transformers==5.23.*' accelerate gguf numpy ||
        echo "transformers could not be installed into $venv: its rows are missing below"
fi
# llama.cpp compiles for minutes: only where it is asked for. Without AMX, in which the build that PyPI makes dies.
if [ "${LLAMA:-}" = 1 ] && ! "$venv/bin/python" -c 'import llama_cpp' 2>/dev/null; then
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" \
        "$venv/bin/pip" install --quiet --no-cache-dir --no-binary llama-cpp-python llama-cpp-python ||
        echo "llama-cpp-python could not be built into $venv: its rows are missing below"
fi
prompts=$(mktemp /tmp/taskvec-prompts-XXXXXX.json)
said=$(mktemp /tmp/taskvec-said-XXXXXX.txt)
trap 'rm -f "$prompts" "$said"' EXIT
for type in f32:float32 bf16:bfloat16; do
    echo "${type%:*}"
    RAYON_NUM_THREADS=$threads target/release/examples/language_speed \
        "$model" "$prompts" "$threads" "${PER_TASK:-10}" 4 "${type%:*}"
    if "$venv/bin/python" -c 'import torch, transformers, accelerate, gguf' 2>/dev/null; then
        # What it says beside its figures is progress, unless it fails.
        "$venv/bin/python" benches/language.py "$model" "$prompts" --threads "$threads" --dtype "${type#*:}" 2>"$said" ||
            { echo "transformers: not measured:"; tail -n 3 "$said"; }
    else
        echo "transformers: not measured (not installed in $venv)"
    fi
done
