#!/usr/bin/env bash
# The whole test suite from a fresh clone: make .venv if there is none, check style and types, run every test, then
# break the package on purpose and see the tests notice. Extra arguments go to pytest, e.g. bash scripts/test.sh -k resume
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/venv.sh   # makes .venv where needed; sets $BIN
install_extra dev
# timm's own requirement, torchvision, is not needed for the optimizers that the oracles are held against.
"$BIN/python" -m pip install -qq --disable-pip-version-check --no-deps -c scripts/constraints.txt timm

export OMP_NUM_THREADS=1
"$BIN/ruff" check .
"$BIN/ruff" format --check .
"$BIN/pyright" --pythonpath "$BIN/python"
"$BIN/python" -m pytest -n 2 "$@"
[ $# -gt 0 ] || "$BIN/python" scripts/mutate.py
