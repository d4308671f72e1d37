#!/usr/bin/env bash
# Places NVIDIA's run-time compiler and assembler (no GPU needed, 330 MB) where the tests of CUDA kernels look for them.
# Does nothing where they are there already.
set -euo pipefail

PACKAGES=(nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvcc==13.0.88)

cd "$(dirname "$0")/.."
into=${1:-target/cuda}

if [ -e "$into/nvidia/cu13/lib/libnvrtc.so.13" ] && [ -e "$into/nvidia/cu13/bin/ptxas" ]; then
    exit 0
fi
command -v python3 >/dev/null || {
    echo "fetch-nvrtc: python3 with pip is needed to download from PyPI" >&2
    exit 1
}
mkdir -p "$(dirname "$into")"
work=$(mktemp -d "$(dirname "$into")/.cuda-XXXXXX")
trap 'rm -rf "$work"' EXIT
# Without what nvcc needs: only ptxas is used of it.
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --no-compile \
    --only-binary :all: --target "$work/all" "${PACKAGES[@]}"
# Last, and in one step: nobody ever sees half of it.
rm -rf "$into"
mv "$work/all" "$into"
echo "$into"
