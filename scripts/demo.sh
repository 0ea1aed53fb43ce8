#!/usr/bin/env bash
# The main job from a fresh clone: make .venv if there is none, train a LoKr on real images, judge it, draw it.
# Extra arguments go to `hina-kohya train`, e.g. bash scripts/demo.sh --max_train_steps 100
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/venv.sh   # makes .venv where needed; sets $BIN
install_extra train

"$BIN/hina-kohya" train --config_file configs/training/digits_lokr.toml "$@"
