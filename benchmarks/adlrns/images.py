"""`adlrns_resnet` on real images: ADLRNS within a budget, the same network dense, and a narrower dense one of its cost.

python -m benchmarks.adlrns.images

scikit-learn's 1,797 handwritten digits, 360 of them held out, in the settings of configs/adlrns/resnet.toml for all
arms. The narrower network has the widths that bring it nearest to the multiply-adds of ADLRNS, not above them. Seeds
are of weights and of the order of the images; nothing was tuned on them.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from hina_kohya.adlrns import ADLRNSTrainer, adlrns_resnet
from hina_kohya.adlrns.layer.perf import parameters
from hina_kohya.adlrns.layer.sharing import costs
from hina_kohya.adlrns.layer.training import DEFAULT, fit_dense
from hina_kohya.adlrns.settings import Settings

SEEDS, HELD_OUT, SIZE = range(10, 15), 360, 8
NARROW = (10, 21, 42)  # 41.55 percent of the multiply-adds; (10, 21, 43) would have 42.07
ARMS = ("ADLRNS", "dense", "dense, narrower")


def digits() -> tuple[TensorDataset, TensorDataset]:
    data = load_digits()
    x, y = torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, held_out = order[HELD_OUT:], order[:HELD_OUT]
    x = (x - x[train].mean()) / x[train].std()
    return TensorDataset(x[train], y[train]), TensorDataset(x[held_out], y[held_out])


def run(arm: str, seed: int, settings: Settings, epochs: int) -> dict[str, Any]:
    """accuracy and loss of the held-out images; macs of one, a mean over the calibration images; stored parameters."""
    train, held_out = digits()
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"classes": 10, "channels": 1, "image_size": SIZE}
    if arm == "dense, narrower":
        shape["widths"] = NARROW
    model = adlrns_resnet(**shape, dense=arm != "ADLRNS")
    random = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, settings.train.batch_size, shuffle=True, generator=random)
    val_loader = DataLoader(held_out, HELD_OUT)
    if arm == "ADLRNS":
        trainer = ADLRNSTrainer(model, settings)
        last = trainer.train(loader, val_loader, epochs)[-1]
        assert trainer.limits.costs is not None
        macs, row = trainer.limits.costs.planned, {"accuracy": last["val_accuracy"], "loss": last["val_loss"]}
    else:
        row = fit_dense(model, loader, val_loader, epochs, settings.train.lr, torch.device("cpu"))
        macs = costs(model, held_out.tensors[0]).fixed
    return {"arm": arm, "seed": seed, **row, "macs": macs, "stored": parameters(model)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adlrns.images", description=__doc__)
    settings = Settings.of(DEFAULT)
    parser.add_argument("--epochs", type=int, default=settings.train.epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for seed in options.seeds:
        for arm in ARMS:
            rows.append(run(arm, seed, settings, options.epochs))
            print(f"{arm}, seed {seed}: {rows[-1]['accuracy']:.4f}, loss {rows[-1]['loss']:.4f}", flush=True)
    env = measure.environment(1, torch.device("cpu"))
    results = {"environment": env, "epochs": options.epochs, "runs": rows}
    measure.write("adlrns_images", results, markdown(rows, options.epochs, env), options.results)
    return 0


def markdown(rows: list[dict[str, Any]], epochs: int, env: dict[str, Any]) -> str:
    table = []
    dense = next(row["macs"] for row in rows if row["arm"] == "dense")
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        accuracy, loss = [row["accuracy"] for row in own], [row["loss"] for row in own]
        table.append({
            "network": arm, "held-out accuracy": _mean(accuracy), "held-out loss": _mean(loss),
            "MACs, % of dense": f"{100 * statistics.fmean(row['macs'] for row in own) / dense:.1f}",
            "stored": own[0]["stored"],
        })  # fmt: skip
    return (
        f"# ADLRNS: a small ResNet on handwritten digits\n\n`python -m benchmarks.adlrns.images`: {epochs} epochs, "
        f"{HELD_OUT} images held out, mean over {len({row['seed'] for row in rows})} seeds with its standard error. "
        f"{env['date']}, commit {env['commit']}.\n\n{measure.table(table, {name: name for name in table[0]})}\n"
    )


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.4f} ± {error:.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
