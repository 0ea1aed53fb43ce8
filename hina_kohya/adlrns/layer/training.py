"""`hina-kohya adlrns run --data_dir FOLDER`: train `adlrns_resnet` on a folder of images, as the configuration says."""

import argparse
import dataclasses as dc
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hina_kohya.adlrns.settings import Settings

from . import results

# As configs/adlrns/resnet.toml, which is not in the wheel.
DEFAULT: dict[str, Any] = {
    "model": {"type": "adlrns_resnet"},
    "train": {"batch_size": 64, "epochs": 30, "lr": 1e-3},
    "scheduler": {"budget": 40.0},
}
PROG = "hina-kohya adlrns run --data_dir FOLDER"
EXAMPLE = """examples:
  hina-kohya adlrns run --data_dir images --save_dir runs/images
  hina-kohya adlrns run --config my.yaml --data_dir images --save_dir runs/images --gpu 0 --dense"""


def main(argv: list[str], make_parser: Callable[..., argparse.ArgumentParser]) -> int:
    parser = make_parser(
        prog=PROG,
        description=(
            "Trains a small ResNet of dynamic convolutions on FOLDER/train/CLASS/*.png, measures it on "
            "FOLDER/val/CLASS/*.png, and writes last.pt, best.pt, results.md and results.json."
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: as configs/adlrns/resnet.toml")
    parser.add_argument(
        "--save_dir",
        "-o",
        "--output",
        type=Path,
        default=Path("runs/adlrns"),
        metavar="DIR",
        help="default: %(default)s",
    )
    parser.add_argument("--gpu", type=int, metavar="N", help="default: the first, or the CPU where there is none")
    parser.add_argument("--image_size", type=int, default=32, metavar="S", help="S x S pixels, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense", action="store_true", help="also the same network with ordinary convolutions")
    args = parser.parse_args(argv)
    try:
        settings = Settings.of(DEFAULT) if args.config is None else Settings.read(args.config)
        if args.image_size < 1:
            raise ValueError(f"--image_size {args.image_size} must be at least 1")
        outcome = train(args, settings)
    except (ValueError, OSError) as error:
        print(f"hina-kohya adlrns run: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        print('hina-kohya adlrns run: error: Pillow is missing; pip install "hina-kohya[plot]"', file=sys.stderr)
        return 2
    text = table(outcome["rows"])
    results.write(args.save_dir, outcome, text)
    print(f"\n{text}\nwritten to {args.save_dir}: results.md, results.json, last.pt, best.pt")
    return 0


def train(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """rows: of name, accuracy, loss (both of the held-out images), percent (of the dense multiply-adds), stored
    (parameters); history: of the dynamic network, one entry an epoch."""
    import torch  # noqa: PLC0415 (not for --help)
    from torch.utils.data import DataLoader  # noqa: PLC0415

    from . import images  # noqa: PLC0415
    from .perf import parameters  # noqa: PLC0415
    from .resnet import adlrns_resnet  # noqa: PLC0415
    from .sharing import costs  # noqa: PLC0415
    from .trainer import ADLRNSTrainer  # noqa: PLC0415

    devices = torch.cuda.device_count()
    if args.gpu is not None and not 0 <= args.gpu < devices:
        raise ValueError(f"--gpu {args.gpu}: torch sees {devices} CUDA devices; leave --gpu out to take what is there")
    device = torch.device(f"cuda:{args.gpu or 0}" if torch.cuda.is_available() else "cpu")
    folders = images.load(args.data_dir, args.image_size)
    print(
        f"{args.data_dir}: {len(folders[0])} images to train on, {len(folders[1])} held out, {len(folders[2])} classes"
    )
    batch = settings.train.batch_size
    val_loader = DataLoader(folders[1], batch)
    shape = {"classes": len(folders[2]), "image_size": args.image_size}
    epochs = settings.train.epochs

    torch.manual_seed(args.seed)
    random = torch.Generator().manual_seed(args.seed)
    model = adlrns_resnet(**shape, **dc.asdict(settings.model))
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        trainer = ADLRNSTrainer(model, settings, device, args.save_dir)
    for remark in remarks:
        print(remark.message)
    train_loader = DataLoader(folders[0], batch, shuffle=True, generator=random)
    for epoch in range(epochs):
        trainer.train(train_loader, val_loader, 1)
        print(f"epoch {epoch + 1} of {epochs}: " + _line(trainer.history[-1]), flush=True)
    last = trainer.history[-1] if trainer.history else trainer.validate(val_loader)
    x = next(iter(val_loader))[0].to(device)
    cost = trainer.limits.costs or costs(model, x)
    total = cost.fixed + sum(macs for _, macs in cost.layers)
    rows = [
        {
            "name": "ADLRNS",
            "accuracy": last["val_accuracy"],
            "loss": last["val_loss"],
            "percent": 100 * cost.planned / total,
            "stored": parameters(model),
        }
    ]
    if args.dense:
        torch.manual_seed(args.seed)
        twin = adlrns_resnet(**shape, dense=True).to(device)
        row = fit_dense(
            twin,
            DataLoader(folders[0], batch, shuffle=True, generator=random.manual_seed(args.seed)),
            val_loader,
            epochs,
            settings.train.lr,
            device,
        )
        rows.append({"name": "dense", **row, "percent": 100.0, "stored": parameters(twin)})
    return {"rows": rows, "history": trainer.history, "macs": total, "classes": folders[2], "device": str(device)}


def fit_dense(model: Any, train_loader: Any, val_loader: Any, epochs: int, lr: float, device: Any) -> dict[str, float]:
    """Adam, as `ADLRNSTrainer` does; accuracy and loss of the held-out images."""
    import torch  # noqa: PLC0415
    from torch.nn import functional as F  # noqa: PLC0415

    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        print(f"dense, epoch {epoch + 1} of {epochs}", flush=True)
    model.eval()
    loss = correct = samples = 0.0
    with torch.no_grad():
        for x, y in val_loader:
            output = model(x.to(device))
            loss += float(F.cross_entropy(output, y.to(device))) * len(x)
            correct += float((output.argmax(1) == y.to(device)).sum())
            samples += len(x)
    return {"accuracy": correct / samples, "loss": loss / samples}


def _line(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | held-out accuracy | held-out loss | MACs, % of dense | stored |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['accuracy']:.4f} | {row['loss']:.4f} | {row['percent']:.2f} | {row['stored']} |"
        )
    return "\n".join(lines) + "\n"
