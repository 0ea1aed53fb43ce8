"""What others cut a LoRA by, of the weights alone: sd-scripts' four modes, and LyCORIS's threshold.

fixed        : one rank
sv_ratio     : of each module what is above a share of its largest singular value
sv_fro       : the fewest directions with a share of the root of its energy
sv_cumulative: the fewest directions with a share of the sum of its singular values
threshold    : of all modules what is above one singular value (LyCORIS)

sd-scripts: networks/resize_lora.py of v0.11.1, whose modes take at most `--new_rank` directions and at least one. Where
SD_SCRIPTS_HOME names a checkout, the files are made by that program itself; the formulas choose its parameter.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SD_SCRIPTS = ("fixed", "sv_ratio", "sv_fro", "sv_cumulative")
MODES = (*SD_SCRIPTS, "threshold")
Cut = dict[str, int]  # module -> rank
_ROUNDS = 60  # of a bisection
_MARGIN = 1e-4  # from the edge, where the rounding of float32 decides


def decomposed(file: Path) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Module -> U [m, r], s [r], V^T [r, n] of a LoRA's change of the weight."""
    tensors, found = load_file(file), {}
    for key, down in tensors.items():
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            scale = float(tensors[f"{name}.alpha"]) / len(down)
            left, up_core = torch.linalg.qr(tensors[f"{name}.lora_up.weight"].flatten(1))
            right, down_core = torch.linalg.qr(down.flatten(1).T)
            u, s, vt = torch.linalg.svd(up_core @ down_core.T * scale, full_matrices=False)
            found[name] = left @ u, s, vt @ right.T
    return found


def _ratio(s: Tensor, parameter: float) -> int:
    return int((s > s[0] / parameter).sum())


def _fro(s: Tensor, parameter: float) -> int:
    return int(torch.searchsorted(s.square().cumsum(0) / s.square().sum(), parameter**2)) + 1


def _cumulative(s: Tensor, parameter: float) -> int:
    return int(torch.searchsorted(s.cumsum(0) / s.sum(), parameter)) + 1


# Mode -> (rank of a module, parameter at which files are smallest, at which they are largest)
_RULES: dict[str, tuple[Callable[[Tensor, float], int], float, float]] = {
    "sv_ratio": (_ratio, 1.0, 1e6),
    "sv_fro": (_fro, 0.0, 1.0),
    "sv_cumulative": (_cumulative, 0.0, 1.0),
    "threshold": (lambda s, parameter: int((s > 10**-parameter).sum()), -4.0, 8.0),
}


def cut(mode: str, found: dict[str, tuple[Tensor, Tensor, Tensor]], rank: int, limit: int) -> tuple[Cut, float]:
    """(ranks, parameter) of the largest file of at most `limit` bytes, of which `fixed` has one `rank`."""
    if mode == "fixed":
        return dict.fromkeys(found, rank), float(rank)
    rule, low, high = _RULES[mode]

    def ranks(parameter: float) -> Cut:
        return {name: max(1, min(rule(s, parameter), len(s))) for name, (_, s, _) in found.items()}

    for _ in range(_ROUNDS):
        middle = (low * high) ** 0.5 if mode == "sv_ratio" else (low + high) / 2
        if size(found, ranks(middle)) <= limit:
            low = middle
        else:
            high = middle
    low -= _MARGIN * abs(low)
    return ranks(low), low


def size(found: dict[str, tuple[Tensor, Tensor, Tensor]], ranks: Cut) -> int:
    """Bytes of the tensors: names are the same for all."""
    return sum(4 * ranks[name] * (len(u) + vt.shape[1]) for name, (u, _, vt) in found.items())


def write(parent: Path, found: dict[str, tuple[Tensor, Tensor, Tensor]], ranks: Cut, out: Path) -> None:
    """As `resize_lora.py` writes it: all of the strength in the up factor."""
    tensors = load_file(parent)
    for name, (u, s, vt) in found.items():
        up, down, rank = f"{name}.lora_up.weight", f"{name}.lora_down.weight", ranks[name]
        ones = [1] * (tensors[up].dim() - 2)
        tensors[up] = (u[:, :rank] * s[:rank]).reshape(len(u), rank, *ones).contiguous()
        tensors[down] = vt[:rank].reshape(rank, *tensors[down].shape[1:]).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, out)


# The real one. Its environment has what it imports; ours need not.

# Modes decompose the same matrices, which takes minutes of a language model's: each is decomposed once.

_PROGRAM = """
import hashlib, json, sys
import torch
from networks import resize_lora
decompose, finished = torch.linalg.svd, {}
def svd(matrix):
    key = hashlib.sha256(repr(tuple(matrix.shape)).encode() + matrix.contiguous().numpy().tobytes()).digest()
    if key not in finished:
        finished[key] = decompose(matrix)
    return finished[key]
torch.linalg.svd = svd
for words in json.load(sys.stdin):
    resize_lora.resize(resize_lora.setup_parser().parse_args(words))
"""


def checkout() -> Path | None:
    home = os.environ.get("SD_SCRIPTS_HOME")
    return Path(home) if home and _python().is_file() else None


def _python() -> Path:
    home = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness"))
    return home / "venv" / "bin" / "python"


def words(mode: str, parent: Path, out: Path, rank: int, parameter: float) -> list[str]:
    """The command line of `resize_lora.py`; rank: the parent's, which the modes may take all of."""
    if mode == "fixed":
        return ["--model", str(parent), "--save_to", str(out), "--new_rank", str(int(parameter))]
    rest = ["--new_rank", str(rank), "--dynamic_method", mode, "--dynamic_param", repr(parameter)]
    return ["--model", str(parent), "--save_to", str(out), *rest]


def run(home: Path, calls: list[list[str]]) -> None:
    """Several command lines in one process of theirs."""
    stubs = Path(os.environ.get("HINA_HARNESS", Path(__file__).parents[3] / "shared" / "harness")) / "stubs"
    places: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join([str(home), str(stubs)])}
    made = subprocess.run([str(_python()), "-c", _PROGRAM], input=json.dumps(calls), env=places, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"resize_lora.py of {home} failed: {made.stderr[-500:]}")
