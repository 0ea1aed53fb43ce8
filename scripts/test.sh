#!/usr/bin/env bash
# The whole test suite from a fresh clone: make .venv if there is none, check style and types, run every test, then
# break the package on purpose and see the tests notice. Extra arguments go to pytest, e.g. bash scripts/test.sh -k resume
# --quick: style, and one case of every test that is not marked slow; less than a minute on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/venv.sh   # makes .venv where needed; sets $BIN
install_extra dev
# timm's own requirement, torchvision, is not needed for the optimizers that the oracles are held against.
"$BIN/python" -m pip install -qq --disable-pip-version-check --no-deps -c scripts/constraints.txt timm

export OMP_NUM_THREADS=1
"$BIN/ruff" check .
"$BIN/ruff" format --check .
quick=
for word in "$@"; do
    [ "$word" != --quick ] || quick=yes
done
[ -n "$quick" ] || "$BIN/pyright" --pythonpath "$BIN/python"
# Each process takes one half of the tests and then what the other has left: fixtures of a module are made once.
"$BIN/python" -m pytest -n 2 --dist worksteal "$@"
[ $# -gt 0 ] || "$BIN/python" scripts/mutate.py
