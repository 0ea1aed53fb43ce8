#!/usr/bin/env bash
# Everything that has to work in the real trainers of sd-scripts and musubi-tuner, tried in them on tiny random models,
# and the table of docs/trainers.md from the results. Needs checkouts and the harness of this project's developers:
#
#   SD_SCRIPTS_HOMES=/sd-0.10.1@48d368fa:/sd-0.11.1@6c223bb MUSUBI_HOMES=/musubi@30c658c \
#   HINA_HARNESS=/harness HARNESS_DIR=/where/its/venvs/and/models/are bash scripts/trainers.sh
#
# @COMMIT is for folders without git. About 40 minutes on two idle cores. Arguments go to pytest: one cell is
#   bash scripts/trainers.sh -k "test_lokr and anima-0.11.1"
# Results are kept in HINA_TRAINERS (default runs/trainers), so that a part can be run again and the table be whole.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    source scripts/venv.sh
    install_extra dev
    PYTHON="$BIN/python"
fi
export OMP_NUM_THREADS=1 HINA_TRAINERS="${HINA_TRAINERS:-$PWD/runs/trainers}"
mkdir -p "$HINA_TRAINERS"
status=0
"$PYTHON" -m pytest tests/trainers -n "${WORKERS:-2}" "$@" || status=$?
"$PYTHON" scripts/trainers.py "$HINA_TRAINERS"
exit $status
