"""Which 8-bit code for Adam's moments: recorded gradients replayed with m and v stored one way or another."""

import argparse
import dataclasses as dc
import math
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.digits import Run
from hina_kohya.numerics import companding

EXAMPLE = """example:
  python -m benchmarks.quantisation --steps 300 --data lora lokr synthetic
"""
BLOCK = 256
BETA1, BETA2, EPS, LR = 0.9, 0.999, 1e-8, 3e-4

EXPLANATION = """\
Gradients of {steps} steps of the embedded trainer (LyCORIS LoRA and LoKr on the digits 8 and 9), and synthetic ones,
replayed through Adam; blocks of at most 256 values that never straddle matrices.

- `dynamic`: bitsandbytes' map, signed for m, unsigned for v; the exact nearest value.
- `root`: `hina_kohya.numerics.companding`, signed square root for m, fourth root for v.
- `root table`: the same values as a table, nearest value.
- `bnb-CPU`: the same table through bitsandbytes' CPU look-up instead.

Errors are against fp32 moments: of the update's direction (mean over steps; over all steps of the worst tensor), of its
length, and of where the parameters end, relative to how far they went.
"""
ABOUT_AGREEMENT = """\
Decoding by bitsandbytes with the table and decoding by formula are the same bits if `decodes equal`. Encoding differs
where the formula rounds the root and the table takes the nearest value: just beside the middle between two codes.
`bnb-CPU differs` counts where bitsandbytes' CPU look-up misses the nearest value; it is coarse near zero.
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


def signed_table() -> Tensor:
    codes = torch.arange(-128, 128)  # -128 is never written
    return companding.decode_signed(codes, torch.ones(1))


def unsigned_table() -> Tensor:
    return companding.decode_unsigned(torch.arange(256), torch.ones(1))


def dynamic_table(signed: bool) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map  # noqa: PLC0415

    return create_dynamic_map(signed=signed)


@dc.dataclass(frozen=True)
class Nearest:
    """The nearest of 256 values, found exactly: what the map can do, whatever the kernel."""

    values: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(dim=-1, keepdim=True)
        middles = (self.values[1:].double() + self.values[:-1].double()) / 2
        relative = x.double() / scale.clamp(min=torch.finfo(x.dtype).tiny)
        return torch.bucketize(relative, middles, out_int32=True).to(torch.uint8), scale

    def decode(self, code: Tensor, scale: Tensor) -> Tensor:
        return self.values[code.int()] * scale


@dc.dataclass(frozen=True)
class LookUp:
    """bitsandbytes' kernel for this device. On the CPU it is coarse: near zero it misses the nearest value by far."""

    values: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415

        padded = torch.nn.functional.pad(x, (0, BLOCK - x.shape[-1])).contiguous()
        code, state = quantize_blockwise(A=padded, code=self.values, blocksize=BLOCK)
        return code.view(padded.shape)[..., : x.shape[-1]], state.absmax.view(*x.shape[:-1], 1)

    def decode(self, code: Tensor, scale: Tensor) -> Tensor:
        from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

        padded = torch.nn.functional.pad(code, (0, BLOCK - code.shape[-1])).contiguous()
        x = dequantize_blockwise(A=padded, absmax=scale.flatten(), code=self.values, blocksize=BLOCK)
        return x.view(padded.shape)[..., : code.shape[-1]]


@dc.dataclass(frozen=True)
class Arithmetic:
    """This project's formulas."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Tensor, Tensor], Tensor]


def codes() -> tuple[dict[str, Any], dict[str, Any]]:
    """For m and for v, by name; None keeps fp32."""
    signed, unsigned = dynamic_table(signed=True), dynamic_table(signed=False)
    m = {
        "fp32": None,
        "dynamic": Nearest(signed),
        "dynamic bnb-CPU": LookUp(signed),
        "root": Arithmetic(companding.encode_signed, companding.decode_signed),
        "root table": Nearest(signed_table()),
        "root table bnb-CPU": LookUp(signed_table()),
    }
    v = {
        "fp32": None,
        "dynamic": Nearest(unsigned),
        "dynamic bnb-CPU": LookUp(unsigned),
        "root": Arithmetic(companding.encode_unsigned, companding.decode_unsigned),
        "root table": Nearest(unsigned_table()),
        "root table bnb-CPU": LookUp(unsigned_table()),
    }
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


def blocks(x: Tensor) -> Tensor:
    """[number, size] as `core.codec.EightBit` cuts a matrix: equal blocks of at most 256."""
    count = math.ceil(x.numel() / BLOCK)
    size = math.ceil(x.numel() / count)
    return torch.nn.functional.pad(x.flatten(), (0, count * size - x.numel())).view(count, size)


def stored(x: Tensor, code: Any) -> Tensor:
    if code is None:
        return x
    return code.decode(*code.encode(blocks(x))).flatten()[: x.numel()].view(x.shape)


# The replay


class Replay:
    """AdamW without decay on recorded gradients; the update is made before the moments are stored."""

    def __init__(self, shapes: list[torch.Size], m_code: Any, v_code: Any):
        self.codes = m_code, v_code
        self.m, self.v, self.moved = ([torch.zeros(shape) for shape in shapes] for _ in range(3))
        self.step = 0

    def advance(self, gradients: list[Tensor]) -> list[Tensor]:
        self.step += 1
        updates = []
        for i, g in enumerate(gradients):
            m = self.m[i].lerp(g, 1 - BETA1)
            v = (self.v[i] * BETA2).addcmul_(g, g, value=1 - BETA2)
            denominator = v.sqrt().div_(math.sqrt(1 - BETA2**self.step)).add_(EPS)
            updates.append((m * (LR / (1 - BETA1**self.step))).div_(denominator))
            self.m[i], self.v[i] = stored(m, self.codes[0]), stored(v, self.codes[1])
            self.moved[i] -= updates[i]
        return updates


def replay(gradients: list[list[Tensor]], data: str) -> list[dict[str, Any]]:
    m_codes, v_codes = codes()
    shapes = [g.shape for g in gradients[0]]
    reference = Replay(shapes, None, None)
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
    for name, arithmetic, table in (
        ("m", Arithmetic(companding.encode_signed, companding.decode_signed), signed_table()),
        ("v", Arithmetic(companding.encode_unsigned, companding.decode_unsigned), unsigned_table()),
    ):
        x, offset = moments[name], 128 if name == "m" else 0
        mine, scale = arithmetic.encode(x)
        theirs, absmax = Nearest(table).encode(x)
        looked_up = LookUp(table).encode(x)[0]
        assert torch.equal(scale, absmax)
        unit = torch.ones(len(x), 1)
        decoded = LookUp(table).decode((mine.to(torch.int16) + offset).to(torch.uint8), unit)
        apart = (mine.to(torch.int16) + offset - theirs.to(torch.int16)).abs()
        size = x.square().mean().sqrt()
        rows.append(
            {
                "code": f"{name}, root",
                "decode_equal": torch.equal(decoded, arithmetic.decode(mine, unit)),
                "different": apart.bool().float().mean().item(),
                "largest": int(apart.max()),
                "bnb_different": (looked_up != theirs).float().mean().item(),
                "bnb_largest": int((looked_up.to(torch.int16) - theirs.to(torch.int16)).abs().max()),
                "error_arithmetic": ((arithmetic.decode(mine, scale) - x).square().mean().sqrt() / size).item(),
                "error_table": ((Nearest(table).decode(theirs, absmax) - x).square().mean().sqrt() / size).item(),
            }
        )
    return rows


def speed(moments: dict[str, Tensor]) -> list[dict[str, Any]]:
    """CPU time of encoding and decoding a million values, in chunks of 2^18 as the optimizer works."""
    rows = []
    for name, table in zip("mv", codes(), strict=True):
        x = moments[name].abs() if name == "v" else moments[name]
        x = x.repeat(math.ceil((1 << 18) / x.numel()), 1)[: (1 << 18) // x.shape[-1]].contiguous()
        for kind, code in table.items():
            if code is None or isinstance(code, Nearest):  # which is only a yardstick, and slow
                continue
            encoded = code.encode(x)
            times = {"encode_ms": lambda c=code, x=x: c.encode(x), "decode_ms": lambda c=code, e=encoded: c.decode(*e)}
            rows.append({"code": f"{name}, {kind}"})
            for key, function in times.items():
                rows[-1][key] = 1e3 * min(_cpu(function) for _ in range(9)) / x.numel() * 1e6
    return rows


def _cpu(function: Callable[[], Any], times: int = 4) -> float:
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def moments_of(gradients: list[list[Tensor]]) -> dict[str, Tensor]:
    """Blocks of exactly 256 of the last m and v."""
    last = Replay([g.shape for g in gradients[0]], None, None)
    for step in gradients:
        last.advance(step)
    flat = {"m": torch.cat([m.flatten() for m in last.m]), "v": torch.cat([v.flatten() for v in last.v])}
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
