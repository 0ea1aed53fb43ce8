"""`hina-kohya adlrns run`: train a dense denoiser, compress it by ADLRNS, and compare with static ranks.

The methods of the table, at the multiply-adds of a static rank or of a budget:
static : SVD in the input's metric (SVD-LLM), in both metrics, and fine-tuned
dynamic: ADLRNS, training-free, and fine-tuned as static was
Methods of others, and ADLRNS with parts of it off, are in a source checkout: `python -m benchmarks.adlrns.comparison`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hina_kohya.adlrns.settings import Settings

from . import results, training

SIZE = 64  # of a patch
EXAMPLE = """examples:
  hina-kohya adlrns run --config configs/adlrns/patches.toml -o runs/adlrns
  hina-kohya adlrns run --config configs/adlrns/patches.toml --methods static dynamic --budgets 10 --ranks 8
  hina-kohya adlrns run --data_dir images --save_dir runs/images --gpu 0"""


def main(argv: list[str], make_parser: Callable[..., argparse.ArgumentParser]) -> int:
    about = (
        "Patch denoising on scikit-learn's sample images: PSNR against multiply-adds, of ADLRNS and of static ranks. "
        "DyLoRA, RaNA and ADLRNS with parts of it off: python -m benchmarks.adlrns.comparison, in a source checkout. "
        "With --data_dir FOLDER it trains on your images instead: hina-kohya adlrns run --data_dir FOLDER --help."
    )
    if any(word.partition("=")[0] == "--data_dir" for word in argv):
        return training.main(argv, make_parser)
    return compare(argv, make_parser, Comparison, "hina-kohya adlrns run", about, EXAMPLE)


def compare(
    argv: list[str],
    make_parser: Callable[..., argparse.ArgumentParser],
    comparison: "type[Comparison]",
    prog: str,
    about: str,
    example: str,
) -> int:
    """The command: reads its words, runs a comparison, writes its rows; the exit code."""
    parser = make_parser(
        prog=prog,
        description=f"{about} Writes results.md, results.json and psnr_per_mac.png.",
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="TOML", help="such as configs/adlrns/patches.toml"
    )
    parser.add_argument(
        "-o",
        "--output",
        "--save_dir",
        type=Path,
        default=Path("runs/adlrns"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[10.0, 13.0, 18.0], metavar="B", help="percent of MACs"
    )
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[8, 12, 16], metavar="R", help="static ranks to compare"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=comparison.methods, default=comparison.methods, help="default: all"
    )
    parser.add_argument("--width", type=int, default=256, help="of the hidden layers, default: %(default)s")
    parser.add_argument("--dense-epochs", type=int, default=60, help="of the dense model, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        settings = Settings.read(args.config)
        _check(args, settings)
        rows = run(args, settings, comparison)
    except (ValueError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f'{prog}: error: {error.name} is missing; pip install "hina-kohya[train]"', file=sys.stderr)
        return 2
    text = table(rows)
    results.write(args.output, rows, text)
    plot(args.output / "psnr_per_mac.png", rows)
    print(text + f"\nwritten to {args.output}: results.md, results.json, psnr_per_mac.png")
    return 0


def _check(args: argparse.Namespace, settings: Settings) -> None:
    """Before minutes of training. Raises ValueError."""
    if settings != Settings.of({"train": {k: getattr(settings.train, k) for k in ("batch_size", "epochs", "lr")}}):
        raise ValueError(
            f"{args.config} says more than this command uses, which is batch_size, epochs and lr of [train]: remove "
            "the rest, or train a network of your own by it with ADLRNSTrainer, as in docs/adlrns.md"
        )
    if args.width < 2 or args.dense_epochs < 1:
        raise ValueError(f"--width {args.width} and --dense-epochs {args.dense_epochs} must be at least 2 and 1")
    most = min(SIZE, args.width)
    least = 100 * (2 * (SIZE + args.width) + 2 * args.width) / (args.width * (2 * SIZE + args.width))
    for rank in args.ranks:
        if not 1 <= rank <= most:
            raise ValueError(f"--ranks {rank} must be from 1 to {most}, the smaller side of every layer")
    for budget in args.budgets:
        if not least <= budget <= 100:
            raise ValueError(f"--budgets {budget:g} must be from {least:.3g}, the cost of rank 1, to 100 percent")


def run(args: argparse.Namespace, settings: Settings, comparison: "type[Comparison]") -> list[dict[str, Any]]:
    """Rows of family, name, psnr (dB), percent (of the dense MACs, on the test data), stored (parameters)."""
    from rich.progress import Progress  # noqa: PLC0415 (an extra)

    with Progress() as bar:
        compared = comparison(args, settings, bar)
        compared.once()
        for budget in args.budgets:
            compared.at(budget)
    return compared.rows


class Comparison:
    """A dense network, and what methods make of it; each adds its rows."""

    methods: tuple[str, ...] = ("static", "dynamic")

    def __init__(self, args: argparse.Namespace, settings: Settings, bar: Any):
        from . import patches  # noqa: PLC0415 (torch: not for --help)

        self.args, self.settings, self.bar, self.patches = args, settings, bar, patches
        self.on = {method: method in args.methods for method in self.methods}
        self.rows: list[dict[str, Any]] = []
        self.train, self.test = patches.load(args.seed, settings.train.batch_size)
        self.calibration = list(self.train.noisy.split(4096))
        self.task = bar.add_task("dense", total=args.dense_epochs + settings.train.epochs * self.trained())
        self.dense = patches.network(args.width, args.seed)
        self.total = sum(p.numel() for p in self.dense.parameters() if p.dim() > 1)
        self.fit("dense", self.dense, args.dense_epochs, 2e-3)
        self.add("dense", "", self.dense)

    def fit(self, what: str, model: Any, epochs: int, lr: float) -> None:
        for _ in self.patches.fit(model, self.train, epochs, lr):
            self.bar.update(self.task, advance=1, description=what)

    def tune(self, what: str, model: Any) -> None:
        self.fit(what, model, self.settings.train.epochs, self.settings.train.lr)

    def add(self, family: str, size: str, model: Any) -> None:
        psnr = self.patches.psnr(model, self.test)
        macs = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        if hasattr(model, "spent"):
            macs = model.spent / len(self.test.clean)
        elif hasattr(model, "macs"):
            macs = model.macs()
        stored = sum(p.numel() for p in model.parameters())
        name = f"{family}, {size}" if size else family
        percent = 100 * macs / self.total
        self.rows.append({"family": family, "name": name, "psnr": psnr, "percent": percent, "stored": stored})

    def trained(self) -> int:
        """Networks that will be tuned."""
        return len(self.args.ranks) * self.on["static"] + len(self.args.budgets) * self.on["dynamic"]

    def once(self) -> None:
        """What has a rank and no budget."""
        from .static import static_ranks  # noqa: PLC0415

        for rank in self.args.ranks if self.on["static"] else ():
            one_sided = static_ranks(self.dense, self.calibration, rank, two_sided=False)
            self.add("static, input metric (SVD-LLM)", f"rank {rank}", one_sided)
            model = static_ranks(self.dense, self.calibration, rank)
            self.add("static, both metrics", f"rank {rank}", model)
            self.tune(f"static {rank}", model)
            self.add("static, tuned", f"rank {rank}", model)

    def at(self, budget: float) -> None:
        """What has a budget."""
        from .compression import compress  # noqa: PLC0415
        from .trainer import ADLRNSTrainer  # noqa: PLC0415

        if not self.on["dynamic"]:
            return
        size, model = f"{budget:g} %", compress(self.dense, self.calibration, budget)
        self.add("dynamic", size, model)
        config = Settings.of({"train": {"lr": self.settings.train.lr}, "scheduler": {"budget": budget}})
        trainer = ADLRNSTrainer(model, config)
        for _ in range(self.settings.train.epochs):
            trainer.train(self.train, [(self.test.noisy, self.test.clean)], 1)
            self.bar.update(self.task, advance=1, description=f"dynamic {size}")
        self.add("dynamic, tuned", size, model)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | PSNR, dB | MACs, % of dense | stored |", "| --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['psnr']:.3f} | {row['percent']:.2f} | {row['stored']} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """PSNR over the share of the dense MACs, one line a family."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (no pyplot: no global state, no display)

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(row["family"] for row in rows if row["family"] != "dense"):
        points = sorted((row["percent"], row["psnr"]) for row in rows if row["family"] == family)
        style = "-" if family.endswith("tuned") or "cut" in family else "--"  # dashed: training-free
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=family)
    axes.axhline(rows[0]["psnr"], color="grey", linestyle=":", label="dense, 100 %")
    axes.set(xlabel="multiply-adds, % of the dense network", ylabel="PSNR on unseen halves, dB")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
