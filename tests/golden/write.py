"""Writes the checkpoints that later releases must read: `python -m tests.golden.write tests/golden/NAME.pt.gz`.

One file a format, written once, by the release that made the format. To write those of an old commit, run this file
with that commit's package first on PYTHONPATH.
"""

import gzip
import io
import platform
import re
import sys
from pathlib import Path

import torch

import hina_kohya

SHAPES = {
    "lora_unet_a.lora_down.weight": (4, 12),
    "lora_unet_a.lora_up.weight": (10, 4),
    "lora_unet_k.lokr_w1": (4, 4),
    "lora_unet_k.lokr_w2": (5, 5),
    "lora_unet_d.dora_scale": (10, 1),
    "head.weight": (7, 60),
    "head.bias": (7,),
}
ON = {"use_alora": True, "use_tam": True, "use_agr": True, "use_kronecker_rms": True, "dynamic_weight_decay": True}
CASES = {
    **{f"HinaAdamW {state}": ("HinaAdamW", {"state": state}) for state in ("8bit", "bf16", "fp32")},
    **{f"HinaAdamW adam {state}": ("HinaAdamW", {"state": state, "use_muon": False}) for state in ("8bit", "bf16")},
    "HinaAdamW on": ("HinaAdamW", {**ON, "use_muon": False}),
    "HinaAdamW rite": ("HinaAdamW", {"use_lora_rite": True}),
    "HinaAdamW spd": ("HinaAdamW", {"use_spd": True, "use_adopt_stability": True}),
    **{f"AdaptiveHinaAdamW {state}": ("AdaptiveHinaAdamW", {"state": state, "use_lr_mask": True,
       "adaptation_strength": 0.5}) for state in ("8bit", "bf16", "fp32")},
    **{f"AutomagicCameAMP {state}": ("AutomagicCameAMP", {"state": state, "profile": "quality_optimized"})
       for state in ("8bit", "bf16", "fp32")},
    "AutomagicCameAMP8bit": ("AutomagicCameAMP8bit", {}),
    **{f"COptim {state}": ("COptim", {"state": state}) for state in ("8bit", "bf16", "fp32")},
    "COptim8bit": ("COptim8bit", {"enable_dual_momentum": True}),
}  # fmt: skip
BEFORE, AFTER = 5, 3


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in SHAPES.items()}
    return {name: torch.nn.Parameter(value.to(dtype)) for name, value in drawn.items()}


def steps(optimizer, params, first, last):
    for step in range(first, last):
        for index, param in enumerate(params.values()):
            generator = torch.Generator().manual_seed(step * 1009 + index)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def optimizer(name, params, **more):
    cls, options = CASES[name]
    return getattr(hina_kohya, cls)(params.items(), lr=1e-2, **options, **more)


def values(params):
    return {name: param.detach().clone() for name, param in params.items()}


def case(name):
    """Parameters when the checkpoint was written, the checkpoint, and the parameters some steps later."""
    params = parameters()
    own = optimizer(name, params)
    steps(own, params, 0, BEFORE)
    at, saved = values(params), own.state_dict()
    saved = torch.load(io.BytesIO(packed(saved)), weights_only=True)
    steps(own, params, BEFORE, BEFORE + AFTER)
    return {"at": at, "checkpoint": saved, "later": values(params)}


def packed(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read(path):
    return torch.load(io.BytesIO(gzip.decompress(path.read_bytes())), weights_only=True)


def machine():
    """What decides in which order products are summed: MKL and oneDNN choose their kernels by the maker, too."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__}, {platform.machine()}, {capability}, {_maker()}"


def _maker():
    about = Path("/proc/cpuinfo")
    found = re.search(r"^vendor_id\s*: *(\S+)", about.read_text(), re.MULTILINE) if about.is_file() else None
    return found.group(1) if found else platform.processor()


if __name__ == "__main__":
    torch.set_num_threads(1)
    content = packed({"machine": machine(), "cases": {name: case(name) for name in CASES}})
    Path(sys.argv[1]).write_bytes(gzip.compress(content, mtime=0))
