#!/bin/sh
# Times svg2.h beside PyTorch and scikit-learn on the same tensors, with the same number of threads, in turns.
#
#   bench/compare/run.sh [--install] [--quick] [--threads N] [--repeat N] [--json FILE]
#
# Python comes from .venv at the root of the repository if it is there, else from PATH. --install creates .venv and
# installs numpy, torch (CPU) and scikit-learn into it. What is absent is skipped, with a line that says so.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ "${1:-}" = --install ]; then
    shift
    [ -x "$root/.venv/bin/python" ] || python3 -m venv "$root/.venv"
    "$root/.venv/bin/pip" install --quiet numpy scikit-learn
    # The CPU build is a tenth of the size of the default one; where its index cannot be reached, the default will do.
    "$root/.venv/bin/python" -c 'import torch' 2>/dev/null ||
        "$root/.venv/bin/pip" install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
        "$root/.venv/bin/pip" install --quiet torch
fi
python="$root/.venv/bin/python"
[ -x "$python" ] || python=python3
if ! "$python" -c 'import numpy' 2>/dev/null; then
    echo "compare: skipped, no Python with numpy (bench/compare/run.sh --install makes one)"
    exit 0
fi
flags="-O2 -ffp-contract=off"
mkdir -p "$root/build"
# shellcheck disable=SC2086
${CC:-cc} -std=c99 $flags -fopenmp -shared -fPIC "$root/bench/compare/shim.c" \
    -o "$root/build/libsvg2_shim.so" -lm
commit=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)
exec "$python" "$root/bench/compare/compare.py" --library "$root/build/libsvg2_shim.so" --commit "$commit" \
    --compiler "$(${CC:-cc} --version | head -n 1), $flags" "$@"
