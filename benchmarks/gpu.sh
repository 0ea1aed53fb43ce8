#!/usr/bin/env bash
# Everything worth measuring on a real GPU, in under ten minutes, as one table: benchmarks/results/gpu.md.
# Uses $PYTHON, else .venv, else python; that Python needs torch with CUDA and `pip install -e .[dev]`, and a library
# that is missing is a row that says so. Extra arguments go to `python -m benchmarks.gpu`, e.g. --only step codes
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    for candidate in .venv/bin/python .venv/Scripts/python.exe; do
        [ -x "$candidate" ] && PYTHON="$candidate"
    done
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
