#!/usr/bin/env bash
# Steps every optimizer class, codec, switch and option on a GPU that is not there, and counts what a step costs on one.
# Needs torch's CUDA build, some 5.5 GB, in a venv of its own: FAKE_CUDA_VENV, by default in the cache folder of the
# user, made when it is not there. Not part of the tests. Extra arguments go to `python -m benchmarks.fake_cuda`.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.14.1
VENV="${FAKE_CUDA_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/hina-kohya/fake-cuda-torch-$TORCH}"

if [ ! -f "$VENV/installed" ]; then
    echo "installing torch $TORCH with CUDA into $VENV (gigabytes, once) ..."
    "${PYTHON:-python3.11}" -m venv "$VENV"
    # The versions of the tests, but for torch, whose CPU build is pinned there.
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check -c <(grep -v '^torch==' scripts/constraints.txt) \
        "torch==$TORCH" accelerate bitsandbytes lycoris-lora numpy packaging safetensors toml wrapt \
        adv_optm came-pytorch pytorch-optimizer
    "$VENV/bin/python" -c "import torch; assert torch.version.cuda, f'{torch.__version__} has no CUDA'"
    touch "$VENV/installed"
fi

exec "$VENV/bin/python" -m benchmarks.fake_cuda "$@"
