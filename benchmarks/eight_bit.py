"""Does Adam with 8-bit moments step as with fp32 ones, over thousands of steps and whatever the gradients do?"""

import argparse
import dataclasses as dc
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.codes import Kept, Kind, Nearest, RenewedScale, Root, dynamic_table
from hina_kohya.core.state.codec import BFloat16, EightBit, Exact
from hina_kohya.core.technique import Slot

EXAMPLE = """examples:
  python -m benchmarks.eight_bit                        the codes that were compared, and the one that ships
  python -m benchmarks.eight_bit --only shipped --seeds 7 8 9
"""
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
SHAPES = [(8, 640), (640, 8), (1, 2000)]  # lora_down, lora_up, a vector
WINDOW = 250
SHIPPED, BOUNDS = "shipped", (0.95, 1.05, 1.6)

EXPLANATION = """\
AdamW's update (betas 0.9 and 0.999, no decay, no mask) over {steps} steps on matrices {shapes}, gradients of
independent normal entries times a scale that is 1, or log-normal by row and by column (sigma 1 each); seeds {seeds},
which nothing was tuned on. For each entry, the RMS of its steps in windows of {window} steps over that with fp32
moments; its quantiles over all entries of a scenario, the least and the most of all windows.

- stationary: nothing else
- spike: one entry in every block of 256 has a gradient 1,000 times as large at step 1,000
- spikes: so, a hundredfold, another entry every 500 steps
- shrink: half of the entries' scales fall to a tenth at step 1,500
- column, row: the scale of one is 1,000 times as large
- slow: stationary, with beta2 = 0.9999

Bounds: the median within 5 %, the 99th percentile at most 1.6, in every scenario and window.
"""
CODES = """\
- `shipped`: m with an eighth root, to the nearest code; v with a sixteenth root, rounded stochastically, in blocks
  whose scale falls with v (`hina_kohya.numerics.companding`)
- `renewed scale`: the same with the scale of a block made anew at every step, as is usual
- `fourth root, stochastic`: m with an eighth root, v with a fourth root, rounded stochastically, renewed scale
- `as before`: m with a square root, v with a fourth root, both to the nearest code
- `dynamic`: bitsandbytes' maps, signed for m and unsigned for v, to the nearest code
- `bf16 v`: m as shipped, v in bf16, rounded stochastically
"""
ABOUT_AVERAGES = """\

A signed average alone, of the same gradients (log-normal scales): its cosine to the one in fp32 after {steps} steps, by
its decay. To the nearest code, 8 bits lose what moves an average by less than half a code at every step; rounded
stochastically, the noise of all those steps adds up. Decays above {slowest} are refused with `state="8bit"`.
"""
AVERAGES = {"decay": "decay", "eight": "8 bits", "bf16": "bf16"}
DECAYS = (0.9, 0.95, 0.99, 0.995, 0.999, 0.9999)
COLUMNS = {
    "code": "code",
    "bytes": "bytes a parameter",
    "scenario": "scenario",
    "median_low": "median, least",
    "median_high": "median, most",
    "high": "99 %, most",
    "low": "1 %, least",
    "direction": "1 - cosine",
}


# Gradients


@dc.dataclass(frozen=True)
class Scenario:
    name: str
    beta2: float = BETA2

    def scales(self, scale: Tensor, generator: torch.Generator) -> Tensor:
        _, m, n = scale.shape
        if self.name == "column" and n > 1:
            scale[:, :, int(torch.randint(n, (1,), generator=generator))] *= 1000
        if self.name == "row" and m > 1:
            scale[:, int(torch.randint(m, (1,), generator=generator))] *= 1000
        return scale

    def factor(self, step: int, like: Tensor, generator: torch.Generator) -> Tensor | float:
        if self.name == "shrink" and step >= 1500:
            return torch.where(_half(like), 0.1, 1.0)
        if self.name == "spike" and step == 1000:
            return 1 + 999 * _one_a_block(like, generator)
        if self.name == "spikes" and step % 500 == 499:
            return 1 + 99 * _one_a_block(like, generator)
        return 1.0


SCENARIOS = [Scenario(name) for name in ("stationary", "spike", "spikes", "shrink", "column", "row")]
SCENARIOS.append(Scenario("slow", beta2=0.9999))


def _half(like: Tensor) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(5)) < 0.5


def _one_a_block(like: Tensor, generator: torch.Generator) -> Tensor:
    flat = torch.zeros(like[0].numel())
    starts = torch.arange(0, len(flat), EightBit.block)
    lengths = (len(flat) - starts).clamp(max=EightBit.block)
    flat[starts + (torch.rand(len(starts), generator=generator) * lengths).long()] = 1
    return flat.view(like.shape[1:])


class Gradients:
    """[N, m, n] a step: for each scenario, each seed with equal and with log-normal scales."""

    def __init__(self, shape: tuple[int, int], seeds: list[int]):
        m, n = shape
        self.generator = torch.Generator().manual_seed(seeds[0] * 1009 + m)
        parts = []
        for scenario in SCENARIOS:
            scale = torch.ones(2 * len(seeds), m, n)
            for k, seed in enumerate(seeds):
                own = torch.Generator().manual_seed(seed * 7919 + m)
                scale[2 * k + 1] = torch.randn(m, 1, generator=own).exp() * torch.randn(1, n, generator=own).exp()
            parts.append(scenario.scales(scale, self.generator))
        self.parts = parts
        betas = [each.beta2 for part, each in zip(parts, SCENARIOS, strict=True) for _ in part]
        self.beta2 = torch.tensor(betas, dtype=torch.float64).view(-1, 1, 1)

    def rows(self) -> dict[str, slice]:
        size = len(self.parts[0])
        return {each.name: slice(k * size, (k + 1) * size) for k, each in enumerate(SCENARIOS)}

    def at(self, step: int) -> Tensor:
        both = zip(self.parts, SCENARIOS, strict=True)
        scale = torch.cat([part * each.factor(step, part, self.generator) for part, each in both])
        return scale * torch.randn(scale.shape, generator=self.generator)


# The replay


Kinds = tuple[Kind, Kind]
CANDIDATES: dict[str, tuple[Kinds, float]] = {
    SHIPPED: ((EightBit(), EightBit()), 2),
    "renewed scale": ((EightBit(), RenewedScale()), 2),
    "fourth root, stochastic": ((EightBit(), Root(4, signed=False, stochastic=True)), 2),
    "as before": ((Root(2, signed=True, stochastic=False), Root(4, signed=False, stochastic=False)), 2),
    "dynamic": ((Nearest(dynamic_table(signed=True)), Nearest(dynamic_table(signed=False))), 2),
    "bf16 v": ((EightBit(), BFloat16()), 3),
}


class Adam:
    def __init__(self, like: Tensor, kinds: Kinds):
        self.m, self.v = (
            Kept(like, slot, kind) for slot, kind in zip((Slot.SIGNED, Slot.UNSIGNED), kinds, strict=True)
        )
        self.squares = torch.zeros_like(like)
        self.dots = torch.zeros(len(like), 1, 1)

    def update(self, g: Tensor, beta2: Tensor, step: int) -> Tensor:
        keep = beta2.float()
        m = self.m.value.lerp(g, 1 - BETA1)
        v = self.v.value * keep + g.square() * (1 - beta2).float()
        correction = (1 - beta2**step).sqrt().float()
        u = m / (1 - BETA1**step) / (v.sqrt() / correction + EPS)
        self.m.write(m, step)
        self.v.write(v, step)
        return u


def replay(shape: tuple[int, int], seeds: list[int], steps: int, names: list[str]) -> dict[str, dict[str, list[Any]]]:
    """By code and scenario, of every window: quantiles over entries, and 1 - cosine over the window's steps."""
    gradients = Gradients(shape, seeds)
    like = gradients.at(-1)
    exact = Adam(like, (Exact(), Exact()))
    others = {name: Adam(like, CANDIDATES[name][0]) for name in names}
    found: dict[str, dict[str, list[Any]]] = {name: {each.name: [] for each in SCENARIOS} for name in names}
    for step in range(1, steps + 1):
        g = gradients.at(step - 1)
        expected = exact.update(g, gradients.beta2, step)
        exact.squares += expected.square()
        for other in others.values():
            u = other.update(g, gradients.beta2, step)
            other.squares += u.square()
            other.dots += (u * expected).sum(dim=(1, 2), keepdim=True)
        if step % WINDOW == 0:
            for name, other in others.items():
                for scenario, rows in gradients.rows().items():
                    found[name][scenario].append(_window(exact, other, rows))
                other.squares.zero_()
                other.dots.zero_()
            exact.squares.zero_()
        if step % 100 == 0:
            print(f"\r{shape}: step {step} of {steps}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _window(exact: Adam, other: Adam, rows: slice) -> tuple[Tensor, float]:
    a, b = exact.squares[rows], other.squares[rows]
    norms = (a.sum(dim=(1, 2)) * b.sum(dim=(1, 2))).sqrt()
    return (b / a).sqrt().flatten(), (1 - other.dots[rows].flatten() / norms).mean().item()


def summary(runs: list[dict[str, dict[str, list[Any]]]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows for the table, and the curves: quantiles by window, over the entries of all shapes."""
    rows, curves = [], {}
    quantiles = torch.tensor([0.01, 0.5, 0.99])
    for name in runs[0]:
        bytes_each = CANDIDATES[name][1] + (4 / EightBit.block) * (1 if name == "bf16 v" else 2)
        for scenario in [each.name for each in SCENARIOS]:
            by_window = list(zip(*(run[name][scenario] for run in runs), strict=True))
            points = torch.stack(
                [torch.quantile(torch.cat([ratio for ratio, _ in window]), quantiles) for window in by_window]
            )
            curves.setdefault(name, {})[scenario] = [[round(x, 4) for x in point] for point in points.tolist()]
            cosines = [cosine for window in by_window for _, cosine in window]
            rows.append({
                "code": name, "bytes": round(bytes_each, 3), "scenario": scenario,
                "low": points[:, 0].min().item(), "median_low": points[:, 1].min().item(),
                "median_high": points[:, 1].max().item(), "high": points[:, 2].max().item(),
                "direction": sum(cosines) / len(cosines),
            })  # fmt: skip
    return rows, curves


def averages(seed: int, steps: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(8, 1, generator=generator).exp() * torch.randn(1, 640, generator=generator).exp()
    decays = torch.tensor(DECAYS).view(-1, 1, 1)
    moments = [Kept(scale.expand(len(DECAYS), -1, -1), Slot.SIGNED, kind) for kind in (Exact(), EightBit(), BFloat16())]
    for step in range(steps):
        g = scale * torch.randn(scale.shape, generator=generator)
        for each in moments:
            each.write(each.value * decays + (1 - decays) * g, step)
    exact, *others = (each.value.flatten(1) for each in moments)
    eight, bf16 = (torch.cosine_similarity(other, exact).tolist() for other in others)
    return [{"decay": f"{decay:g}", "eight": a, "bf16": b} for decay, a, b in zip(DECAYS, eight, bf16, strict=True)]


def within(row: dict[str, Any]) -> bool:
    low, high, most = BOUNDS
    return low <= row["median_low"] and row["median_high"] <= high and row["high"] <= most


def main(reporter: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES), metavar="CODE")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="eight_bit", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seeds[0])
    env = measure.environment(options.threads, torch.device("cpu"))
    start = time.perf_counter()
    with torch.no_grad():
        runs = [replay(shape, options.seeds, options.steps, options.only) for shape in SHAPES]
        by_decay = averages(options.seeds[0], options.steps)
    rows, curves = summary(runs)
    command = shlex.join(["python", "-m", "benchmarks.eight_bit", *sys.argv[1:]])
    passed = {name: all(within(row) for row in rows if row["code"] == name) for name in options.only}
    verdicts = "\n".join(f"- `{name}`: {'within' if ok else 'not within'} the bounds" for name, ok in passed.items())
    markdown = "\n".join([
        measure.heading("Adam in 8 bits over thousands of steps", env, command),
        EXPLANATION.format(steps=f"{options.steps:,}", shapes=SHAPES, seeds=options.seeds, window=WINDOW),
        CODES, verdicts, "", measure.table(rows, COLUMNS),
        ABOUT_AVERAGES.format(steps=f"{options.steps:,}", slowest=EightBit.slowest), measure.table(by_decay, AVERAGES),
        f"\nAll windows (1 %, median, 99 %) are in the JSON file. {time.perf_counter() - start:.0f} s.",
    ])  # fmt: skip
    reporter(markdown)
    content = {"bounds": BOUNDS, "rows": rows, "averages": by_decay, "window": WINDOW, "curves": curves}
    measure.write(options.output, {"env": env, **content}, markdown)


if __name__ == "__main__":
    main()
