"""Relationships found without names, against the names: precision, recall, and what a look costs."""

import argparse
import dataclasses as dc
import logging
import random
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, shapes
from hina_kohya import HinaAdamW
from hina_kohya.discovery.legs import Grads, Params
from hina_kohya.discovery.search import Relationship, discover, observe
from hina_kohya.parameters import roles
from hina_kohya.parameters.roles import Member

EXAMPLE = """example:
  python -m benchmarks.discovery --only locon lokr --steps 5
"""
INTERVAL = 100  # steps between two looks, by default
HELD_OUT, SHAPED = (31, 32, 33, 34, 35), "seeds 0, 11 to 13, 21 to 23 and 41 to 48"
LOOKS = 3  # steps whose sums a look compares, as AdaptiveHinaAdamW keeps them
# preset and arguments of LyCORIS; attn-mlp is linear layers (and 1x1 convolutions), convblock the 3x3 convolutions
NETWORKS: dict[str, tuple[str, int, list[str]]] = {
    "lora": ("attn-mlp", 4, ["algo=lora"]),
    "locon": ("unet-convblock-only", 4, ["algo=locon"]),
    "locon-tucker": ("unet-convblock-only", 4, ["algo=locon", "use_tucker=True"]),
    "loha": ("attn-mlp", 4, ["algo=loha"]),
    "loha-conv": ("unet-convblock-only", 4, ["algo=loha"]),
    "lokr": ("attn-mlp", 2, ["algo=lokr", "factor=4"]),
    "lokr-conv": ("unet-convblock-only", 2, ["algo=lokr", "factor=4"]),
    "lokr-full": ("attn-mlp", 16, ["algo=lokr", "factor=8"]),
    "glora": ("attn-mlp", 4, ["algo=glora"]),
    "glora-conv": ("unet-convblock-only", 4, ["algo=glora"]),
}
COLUMNS = {
    "network": "network",
    "precision": "arithmetic",
    "step": "step",
    "matrices": "matrices",
    "true": "by name",
    "found": "found",
    "false": "false",
    "missed": "missed",
    "worst_precision": "worst run, precision %",
    "worst_recall": "worst run, recall %",
    "residual": "worst residual",
    "discover_ms": "discover ms",
    "observe_ms": "observe ms",
    "step_ms": "training step ms",
    "share": f"share at {INTERVAL} steps %",
}


@dc.dataclass(frozen=True)
class Seen:
    """What an optimizer sees at one step: no names, in a random order."""

    params: list[Tensor]
    grads: list[Tensor | None]


class Run:
    """The embedded diffusion model with a LyCORIS network, trained by torch's AdamW, as an optimizer sees it."""

    def __init__(self, network: str, autocast: bool = False, full_bf16: bool = False, seed: int = 0, **changes: Any):
        from hina_kohya.demo import network as adapter  # noqa: PLC0415 (imports diffusers)
        from hina_kohya.demo.data import DigitImages  # noqa: PLC0415
        from hina_kohya.demo.model import DigitModel  # noqa: PLC0415
        from hina_kohya.demo.settings import Settings  # noqa: PLC0415

        preset, dim, words = NETWORKS[network]
        dim = changes.pop("dim", dim)
        words = [*words, f"preset={preset}", f"conv_dim={dim}", f"conv_alpha={dim}", *changes.pop("more", [])]
        settings = Settings(network_dim=dim, network_alpha=dim, network_args=words, **changes)
        torch.manual_seed(seed)
        logging.disable(logging.WARNING)  # LyCORIS tells what it did not find
        try:
            self.model = DigitModel.load().freeze()
            self.network = adapter.create(settings, self.model)
            adapter.param_groups(settings, self.network)  # as in training, it makes them trainable
        finally:
            logging.disable(logging.NOTSET)
        if full_bf16:
            self.network.to(torch.bfloat16)
        self.network.train()
        named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        random.Random(seed).shuffle(named)
        self.params = [p for _, p in named]
        self.members = roles.resolve([name for name, _ in named], [tuple(p.shape) for p in self.params])
        self.data, self.autocast, self.settings = DigitImages([8, 9], seed), autocast, settings

    def steps(self, count: int, accumulate: int = 1, batch: int = 8, lr: float = 1e-3) -> Iterator[Seen]:
        """Parameters and clipped gradients at each step, before the update."""
        optimizer = torch.optim.AdamW(self.params, lr=lr)
        for step in range(count):
            for micro in range(accumulate):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    loss = self.model.loss(self.data.batch(step * accumulate + micro, batch)) / accumulate
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            yield Seen([p.detach() for p in self.params], [p.grad for p in self.params])
            optimizer.step()
            optimizer.zero_grad()


def truth(members: list[Member]) -> dict[frozenset[int], str]:
    """What the names say: pairs W = B A, Kronecker factors, Tucker cores, and LoHa's two products."""
    found: dict[frozenset[int], str] = {}
    modules: dict[str, dict[str, int]] = {}
    for index, member in enumerate(members):
        modules.setdefault(member.module, {})[member.role.name] = index
        for cofactor in member.cofactors:
            found[frozenset((index, cofactor))] = "scale"
    for index, member in enumerate(members):
        if member.partner is not None:
            found[frozenset((index, member.partner))] = "product"
    for at in modules.values():
        if "lora_mid" in at:
            found |= {frozenset((at["lora_mid"], at[end])): "product" for end in ("lora_up", "lora_down")}
        for axis, (first, second) in enumerate((("hada_w1_a", "hada_w2_a"), ("hada_w1_b", "hada_w2_b"))):
            if first in at and members[at[first]].shape[axis] > 1:  # rows and columns may be scaled in opposite ways
                found[frozenset((at[first], at[second]))] = "channel"
    return found


def ties(pairs: dict[frozenset[int], str], expected: dict[frozenset[int], str]) -> dict[frozenset[int], str]:
    """One tie between two modules' parts counts once, however many parameters each part has.

    The scalar form ties a whole product to its cofactor: that is one finding, and a false one is one error.
    """
    roots = _roots([pair for pair, kind in expected.items() if kind != "scale"])
    return {
        (frozenset(roots.get(i, i) for i in pair) if kind == "scale" else pair): kind for pair, kind in pairs.items()
    }


def _roots(pairs: list[frozenset[int]]) -> dict[int, int]:
    """The smallest index of everything that these pairs connect."""
    roots: dict[int, int] = {}
    for pair in pairs:
        joined = {roots.get(i, i) for i in pair}
        members = pair | {i for i, root in roots.items() if root in joined}
        roots.update(dict.fromkeys(members, min(joined)))
    return roots


def compare(found: list[Relationship], expected: dict[frozenset[int], str]) -> dict[str, int]:
    """Counts of ties; one of the wrong kind is false."""
    said = ties({frozenset((r.param, r.partner)): r.interaction_type for r in found}, expected)
    true = ties(expected, expected)
    return {
        "true": len(true),
        "found": len(said),
        "false": sum(true.get(pair) != kind for pair, kind in said.items()),
        "missed": len(true.keys() - said.keys()),
    }


def milliseconds(function: Any, times: int = 5) -> float:
    return statistics.median(measure.timed(function, torch.device("cpu"))[1] for _ in range(times)) * 1e3


def looks_of(network: str, precision: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    run = Run(network, autocast=precision != "fp32", full_bf16=precision == "full bf16", seed=seed)
    expected = truth(run.members)
    looks: list[Tensor] = []
    start = time.process_time()
    for step, seen in enumerate(run.steps(count), 1):
        step_ms = 1e3 * (time.process_time() - start)
        if step >= 3:
            yield {
                "network": network,
                "precision": precision,
                "step": step,
                "matrices": len(run.params),
                **outcome(seen.params, seen.grads, looks, expected),
                "step_ms": step_ms,
            }
        looks = [*looks, observe(seen.params, seen.grads)][1 - LOOKS :]
        start = time.process_time()


def outcome(params: Params, grads: Grads, looks: list[Tensor], expected: dict[frozenset[int], str]) -> dict[str, Any]:
    found = discover(params, grads, looks)
    return {
        **compare(found, expected),
        "residual": 1 - min((r.compatibility for r in found), default=1.0),
        "discover_ms": milliseconds(lambda: discover(params, grads, looks)),
        "observe_ms": milliseconds(lambda: observe(params, grads)),
    }


def rows_of(network: str, precision: str, count: int, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One row a step: counts summed over the seeds, the worst residual, median times."""
    runs = [list(looks_of(network, precision, count, seed)) for seed in seeds]
    for rows in zip(*runs, strict=True):
        counts = {key: sum(row[key] for row in rows) for key in ("true", "found", "false", "missed")}
        times = {key: statistics.median(row[key] for row in rows) for key in ("discover_ms", "observe_ms", "step_ms")}
        yield {
            **rows[0],
            **counts,
            **times,
            "residual": max(row["residual"] for row in rows),
            "share": share(times),
            "worst_precision": min(100 * (1 - row["false"] / max(row["found"], 1)) for row in rows),
            "worst_recall": min(100 * (1 - row["missed"] / row["true"]) for row in rows),
        }


def share(times: dict[str, float]) -> float:
    return (times["discover_ms"] + (LOOKS - 1) * times["observe_ms"]) / times["step_ms"] * 100 / INTERVAL


def sdxl(set_name: str) -> dict[str, Any]:
    """A LoRA set with gradients of random low-rank dense ones; the step is the optimizer's alone."""
    named = shapes.make(set_name)
    generator = torch.Generator().manual_seed(0)
    for (_, a), (_, b) in zip(named[::2], named[1::2], strict=True):
        left, right = (torch.randn(n, 8, generator=generator) for n in (b.shape[0], a.shape[1]))
        with torch.no_grad():
            a.grad, b.grad = (b.T @ left) @ right.T, left @ (right.T @ a.T)
    params, grads = [p.detach() for _, p in named], [p.grad for _, p in named]
    expected = {frozenset((k, k + 1)): "product" for k in range(0, len(named), 2)}
    row = outcome(params, grads, [], expected)
    optimizer = HinaAdamW(named, lr=0.0, weight_decay=0.0)
    optimizer.step()
    row["step_ms"] = milliseconds(optimizer.step)
    names = {"network": f"{set_name}, optimizer alone", "precision": "fp32", "matrices": len(params)}
    return {**names, **row, "share": share(row)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK",
                        help=f"of: {', '.join(NETWORKS)}")  # fmt: skip
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16 autocast", "full bf16"])
    parser.add_argument("--steps", type=int, default=4, help="the first look is at the third")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(HELD_OUT), help=f"the rule was shaped by {SHAPED}")
    parser.add_argument("--set", nargs="*", default=["sdxl-lora-r8", "sdxl-lora-r16"], choices=sorted(shapes.SETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default="discovery", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for network in options.only:
        for precision in options.precision:
            rows += rows_of(network, precision, options.steps, options.seeds)
            print(f"{network:14} {precision:14} false {rows[-1]['false']} missed {rows[-1]['missed']}", file=sys.stderr)
    rows += [sdxl(name) for name in options.set]
    command = shlex.join(["python", "-m", "benchmarks.discovery", *sys.argv[1:]])
    env, markdown = render(rows, options.seeds, command, options.threads)
    print(markdown)
    measure.write(options.output, {"env": env, "rows": rows}, markdown)


def render(rows: list[dict[str, Any]], seeds: list[int], command: str, threads: int) -> tuple[dict[str, Any], str]:
    env = measure.environment(threads, torch.device("cpu"))
    true, found, false, missed = (sum(row[key] for row in rows) for key in ("true", "found", "false", "missed"))
    worst = {key: min(row.get(f"worst_{key}", 100.0) for row in rows) for key in ("precision", "recall")}
    text = (
        f"The embedded diffusion model, names hidden and parameters shuffled, counts over seeds {seeds} (the rule was "
        f"shaped by {SHAPED}). A scalar tie between two parts of a module counts once. In all: precision "
        f"{100 * (1 - false / max(found, 1)):.2f} %, recall {100 * (1 - missed / true):.2f} % of {true}; in the worst "
        f"single run {worst['precision']:.2f} % and {worst['recall']:.2f} %. CPU times of one look; share = discover + "
        f"{LOOKS - 1} observe, every {INTERVAL} steps, of the steps' time.\n"
    )
    return env, "\n".join([measure.heading("Relationship discovery", env, command), text, measure.table(rows, COLUMNS)])


if __name__ == "__main__":
    main()
