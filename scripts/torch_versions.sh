#!/usr/bin/env bash
# Runs the core tests with other releases of torch: the oldest that pyproject.toml allows, with the oldest bitsandbytes,
# and the newest of both. Each in a venv of its own, gigabytes on Linux, in TORCH_VENVS (by default the cache folder of
# the user), kept for the next time. Not part of the tests. Other releases: bash scripts/torch_versions.sh 2.7.1 2.9.0
set -euo pipefail
cd "$(dirname "$0")/.."

VENVS="${TORCH_VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/hina-kohya/torch}"
TESTS=(tests/core tests/numerics tests/techniques tests/oracles tests/optim)

bound() { grep -oP "^    \"$1>=\K[0-9.]+" pyproject.toml; } # the lower bound of a dependency
oldest="$(bound torch).0"
newest="newest"
[ $# -gt 0 ] || set -- "$oldest" "$newest"

failed=()
for version in "$@"; do
    venv="$VENVS/$version"
    if [ ! -f "$venv/installed" ]; then
        rm -rf "$venv"
        "${PYTHON:-python3.11}" -m venv "$venv"
        wanted=(torch bitsandbytes)
        [ "$version" = "$newest" ] || wanted=("torch==$version" bitsandbytes)
        # LyCORIS 4.1 says that any torch will do, but does not import with 2.6.
        [ "$version" != "$oldest" ] || wanted=("torch==$version" "bitsandbytes==$(bound bitsandbytes).0" "lycoris-lora<4.1")
        echo "torch $version: installing ${wanted[*]} and the dev extra into $venv ..."
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
            -c <(grep -vE '^(torch|bitsandbytes|lycoris-lora)==' scripts/constraints.txt) "${wanted[@]}" ".[dev]"
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -c scripts/constraints.txt timm
        touch "$venv/installed"
    fi
    "$venv/bin/python" -c 'import bitsandbytes, torch; print(f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}")'
    OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n 2 -p no:cacheprovider "${TESTS[@]}" || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with torch ${failed[*]}"; exit 1; }
