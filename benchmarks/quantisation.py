"""8-bit codes for Adam's moments beside bitsandbytes': recorded gradients replayed with m and v stored by them.

Over thousands of steps, and whatever the gradients do: `benchmarks.eight_bit`.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.codes import BLOCK, Blockwise, Kept, Kind, LookUp, Nearest, dynamic_table, root_table
from benchmarks.digits import Run
from hina_kohya.core.state.codec import EightBit, Exact
from hina_kohya.core.technique import Slot

EXAMPLE = """example:
  python -m benchmarks.quantisation --steps 300 --data lora lokr synthetic
"""
BETA1, BETA2, EPS, LR = 0.9, 0.999, 1e-8, 3e-4

EXPLANATION = """\
Gradients of {steps} steps of the embedded trainer (LyCORIS LoRA and LoKr on the digits 8 and 9), and synthetic ones,
replayed through Adam; blocks of at most 256 values that never straddle matrices.

- `dynamic`: bitsandbytes' map, signed for m, unsigned for v; the exact nearest value.
- `root`: what ships (`hina_kohya.numerics.companding`): signed eighth root for m; sixteenth root for v, rounded
  stochastically, so that an average that moves by less than a code at every step is followed at all.
- `root table`: the same values as a table, nearest value, the scale of a block made anew at every step.
- `bnb-CPU`: the same table through bitsandbytes' CPU look-up instead.

Errors are against fp32 moments: of the update's direction (mean over steps; over all steps of the worst tensor), of its
length, and of where the parameters end, relative to how far they went.
"""
ABOUT_AGREEMENT = """\
Decoding by bitsandbytes with the table and decoding by formula are the same bits if `decodes equal`. Encoding differs
where the formula rounds the root and the table takes the nearest value: just beside the middle between two codes;
of v, where it rounds away from the nearest. `bnb-CPU differs` counts where bitsandbytes' CPU look-up misses the
nearest value; it is coarse near zero.
"""

COLUMNS = {
    "data": "gradients",
    "m": "m",
    "v": "v",
    "error_cosine": "1 - cosine",
    "worst_tensor": "worst tensor",
    "norm_ratio": "norm ratio",
    "trajectory": "trajectory error",
}
SPEED = {"code": "code", "encode_ms": "encode ms / M", "decode_ms": "decode ms / M"}
AGREEMENT = {
    "code": "code",
    "decode_equal": "decodes equal",
    "different": "codes that differ",
    "largest": "by at most",
    "bnb_different": "bnb-CPU differs from nearest",
    "bnb_largest": "by at most",
    "error_arithmetic": "rms error, arithmetic",
    "error_table": "rms error, table",
}


# The codes


def codes() -> tuple[dict[str, Kind], dict[str, Kind]]:
    """For m and for v, by name."""
    m, v = (
        {
            "fp32": Exact(),
            "dynamic": Nearest(dynamic_table(signed=signed)),
            "dynamic bnb-CPU": LookUp(dynamic_table(signed=signed)),
            "root": EightBit(),
            "root table": Nearest(root_table(signed=signed)),
            "root table bnb-CPU": LookUp(root_table(signed=signed)),
        }
        for signed in (True, False)
    )
    return m, v


SCHEMES = [
    ("dynamic", "dynamic"),
    ("root", "root"),
    ("root table", "root table"),
    ("dynamic bnb-CPU", "dynamic bnb-CPU"),
    ("root table bnb-CPU", "root table bnb-CPU"),
    ("dynamic", "root"),
    ("root", "dynamic"),
    ("dynamic", "fp32"),
    ("root", "fp32"),
    ("fp32", "dynamic"),
    ("fp32", "root"),
]


# The replay


class Replay:
    """AdamW without decay on recorded gradients; the update is made before the moments are stored."""

    def __init__(self, shapes: list[torch.Size], m: Kind, v: Kind):
        self.m, self.v = (
            [Kept(torch.zeros(1, 1, shape.numel()), slot, kind) for shape in shapes]
            for slot, kind in ((Slot.SIGNED, m), (Slot.UNSIGNED, v))
        )
        self.moved = [torch.zeros(1, 1, shape.numel()) for shape in shapes]
        self.step = 0

    def advance(self, gradients: list[Tensor]) -> list[Tensor]:
        self.step += 1
        updates = []
        for i, gradient in enumerate(gradients):
            g = gradient.reshape(1, 1, -1)
            m = self.m[i].value.lerp(g, 1 - BETA1)
            v = (self.v[i].value * BETA2).addcmul_(g, g, value=1 - BETA2)
            denominator = v.sqrt().div_(math.sqrt(1 - BETA2**self.step)).add_(EPS)
            updates.append((m * (LR / (1 - BETA1**self.step))).div_(denominator))
            self.m[i].write(m, self.step)
            self.v[i].write(v, self.step)
            self.moved[i] -= updates[i]
        return updates


def replay(gradients: list[list[Tensor]], data: str) -> list[dict[str, Any]]:
    m_codes, v_codes = codes()
    shapes = [g.shape for g in gradients[0]]
    reference = Replay(shapes, Exact(), Exact())
    others = {(m, v): Replay(shapes, m_codes[m], v_codes[v]) for m, v in SCHEMES}
    dots = {scheme: torch.zeros(3, len(shapes), dtype=torch.float64) for scheme in SCHEMES}  # ab, aa, bb by tensor
    cosines: dict[tuple[str, str], list[float]] = {scheme: [] for scheme in SCHEMES}
    ratios: dict[tuple[str, str], list[float]] = {scheme: [] for scheme in SCHEMES}
    for number, step in enumerate(gradients):
        expected = reference.advance(step)
        for scheme, other in others.items():
            got = other.advance(step)
            now = torch.stack([_products(a.double(), b.double()) for a, b in zip(expected, got, strict=True)], dim=1)
            dots[scheme] += now
            ab, aa, bb = now.sum(dim=1).tolist()
            cosines[scheme].append(ab / math.sqrt(aa * bb) if aa * bb else 1.0)
            ratios[scheme].append(math.sqrt(bb / aa) if aa else 1.0)
        if (number + 1) % 20 == 0:
            print(f"\r{data}: replayed {number + 1} of {len(gradients)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    length = _norm(reference.moved)
    rows = []
    for m, v in SCHEMES:
        ab, aa, bb = dots[m, v]
        worst = (1 - ab / (aa * bb).sqrt().clamp(min=1e-300)).max().item()
        apart = _norm([a - b for a, b in zip(reference.moved, others[m, v].moved, strict=True)])
        rows.append(
            {
                "data": data,
                "m": m,
                "v": v,
                "error_cosine": 1 - sum(cosines[m, v]) / len(cosines[m, v]),
                "worst_tensor": worst,
                "norm_ratio": sum(ratios[m, v]) / len(ratios[m, v]),
                "trajectory": apart / length,
            }
        )
    return rows


def _products(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors))


# The gradients


def recorded(algo: str, steps: int) -> list[list[Tensor]]:
    gradients: list[list[Tensor]] = []
    torch.manual_seed(0)
    Run(algo, steps).record(lambda _, seen: gradients.append(seen))
    return gradients


def synthetic(steps: int) -> list[list[Tensor]]:
    """Rows and columns of very different scale (log-normal) and a slowly turning direction."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scale = normal(256, 1).exp() * normal(1, 256).exp() * 1e-3
    direction, gradients = normal(256, 256), []
    for _ in range(steps):
        direction = direction.lerp(normal(256, 256), 0.02)
        gradients.append([scale * (direction + normal(256, 256))])
    return gradients


# The codes themselves


def agreement(moments: dict[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    for name, slot in (("m", Slot.SIGNED), ("v", Slot.UNSIGNED)):
        x, table = moments[name].unsqueeze(0), root_table(signed=name == "m")  # [1, blocks, 256]
        first = -127 if name == "m" else 0
        parts = EightBit().encode(x, slot, torch.zeros(1, 1, 1, dtype=torch.int32))
        mine = (parts[""][0].to(torch.int16) - first).to(torch.uint8)
        theirs, scale = Nearest(table).encode(x[0])
        lookup = LookUp(table).encode(x[0])[0]
        decoded, ours = LookUp(table).decode(mine, scale), EightBit().decode(parts, *x.shape[1:], slot)[0]
        distance = (mine.to(torch.int16) - theirs.to(torch.int16)).abs()
        size = x.square().mean().sqrt()
        rows.append({
            "code": f"{name}, root",
            "decode_equal": torch.equal(decoded, ours),
            "different": distance.bool().float().mean().item(),
            "largest": int(distance.max()),
            "bnb_different": (lookup != theirs).float().mean().item(),
            "bnb_largest": int((lookup.to(torch.int16) - theirs.to(torch.int16)).abs().max()),
            "error_arithmetic": ((ours - x[0]).square().mean().sqrt() / size).item(),
            "error_table": ((Nearest(table).decode(theirs, scale) - x[0]).square().mean().sqrt() / size).item(),
        })  # fmt: skip
    return rows


def speed(moments: dict[str, Tensor]) -> list[dict[str, Any]]:
    """CPU time of encoding and decoding a million values, in chunks of 2^18 as the optimizer works."""
    rows = []
    for name, slot, table in zip("mv", (Slot.SIGNED, Slot.UNSIGNED), codes(), strict=True):
        x = moments[name].abs() if name == "v" else moments[name]
        x = x.repeat(math.ceil((1 << 18) / x.numel()), 1)[: (1 << 18) // x.shape[-1]].contiguous()
        for kind, code in table.items():
            if isinstance(code, Exact | Nearest):  # nearest is only a yardstick, and slow
                continue
            rows.append({"code": f"{name}, {kind}"})
            for key, function in zip(("encode_ms", "decode_ms"), _works(code, x, slot), strict=True):
                rows[-1][key] = 1e3 * min(_cpu(function) for _ in range(9)) / x.numel() * 1e6
    return rows


def _works(code: Kind, x: Tensor, slot: Slot) -> tuple[Callable[[], Any], Callable[[], Any]]:
    if isinstance(code, Blockwise):
        encoded = code.encode(x)
        return lambda: code.encode(x), lambda: code.decode(*encoded)
    matrix, seed = x.unsqueeze(0), torch.zeros(1, 1, 1, dtype=torch.int32)
    parts = code.encode(matrix, slot, seed)
    before = (code.decode(parts, *x.shape, slot), parts)
    return lambda: code.encode(matrix, slot, seed, before), lambda: code.decode(parts, *x.shape, slot)


def _cpu(function: Callable[[], Any], times: int = 4) -> float:
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def moments_of(gradients: list[list[Tensor]]) -> dict[str, Tensor]:
    """Blocks of exactly 256 of the last m and v."""
    last = Replay([g.shape for g in gradients[0]], Exact(), Exact())
    for step in gradients:
        last.advance(step)
    flat = {
        name: torch.cat([each.value.flatten() for each in moments]) for name, moments in (("m", last.m), ("v", last.v))
    }
    return {name: x[: x.numel() // BLOCK * BLOCK].view(-1, BLOCK) for name, x in flat.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=["lora", "lokr", "synthetic"],
                        choices=["lora", "lokr", "synthetic"])  # fmt: skip
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="quantisation", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    env = measure.environment(options.threads, torch.device("cpu"))
    quality, same, costs = [], [], []
    for data in options.data:
        gradients = synthetic(options.steps) if data == "synthetic" else recorded(data, options.steps)
        with torch.no_grad():
            quality += replay(gradients, data)
            moments = moments_of(gradients)
            same += [{**row, "code": f"{data}: {row['code']}"} for row in agreement(moments)]
            costs = costs or speed(moments)
    command = shlex.join(["python", "-m", "benchmarks.quantisation", *sys.argv[1:]])
    parts = [
        measure.heading("8-bit codes for Adam's moments", env, command),
        EXPLANATION.format(steps=options.steps),
        measure.table(quality, COLUMNS),
        "\n## Does the table say the same as the formula?\n",
        ABOUT_AGREEMENT,
        measure.table(same, AGREEMENT),
        "\n## CPU time per million values\n",
        measure.table(costs, SPEED),
    ]
    markdown = "\n".join(parts)
    print(markdown)
    measure.write(options.output, {"env": env, "quality": quality, "agreement": same, "speed": costs}, markdown)


if __name__ == "__main__":
    main()
