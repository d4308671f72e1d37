#!/usr/bin/env bash
# Makes the stand-in for NVIDIA's libraries (driver.cpp) in a folder: `driver.sh FOLDER`. With LD_LIBRARY_PATH=FOLDER, tests
# that want a GPU find one that is emulated.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
{
    for source in ../*.cu; do echo "#include \"$(basename "$source")\""; done
    echo "#define KERNELS $(sed -n 's/^extern "C" __global__ void \([a-z0-9_]*\)(.*/KERNEL(\1)/p' ../*.cu | tr '\n' ' ')"
} >"$folder/kernels.h"
g++ -std=c++20 -O2 -fPIC -shared -ffp-contract=off -U_FORTIFY_SOURCE -Wall -Wextra -Werror \
    -I "$folder" -I .. -I . driver.cpp -o "$folder/libcuda.so.1"
# One library under all names: what is captured knows of products.
for name in libcublasLt.so.13 libcublas.so.13 libcurand.so.10; do ln -sf libcuda.so.1 "$folder/$name"; done
echo "$folder"
