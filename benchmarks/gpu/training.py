"""Training itself: the embedded trainer's run, and LyCORIS's forward with rebuilt weights and without."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.gpu.rows import Figures, Plan, Row, attempt
from hina_kohya.profile.recorder import ROOT

CONFIG = ROOT / "configs" / "training" / "digits_lokr.toml"
RUN_SECONDS = 120
RUNS = {
    "as shipped (HinaAdamW with Adam and LoRA+)": [],
    "HinaAdamW, defaults": ["--optimizer_type", "HinaAdamW", "--optimizer_args"],
    "torch AdamW": ["--optimizer_type", "torch.optim.AdamW", "--optimizer_args"],
    "bitsandbytes AdamW8bit": ["--optimizer_type", "AdamW8bit", "--optimizer_args"],
    "HinaAdamW, defaults, bf16": ["--optimizer_type", "HinaAdamW", "--optimizer_args", "--mixed_precision", "bf16"],
}


def runs(plan: Plan) -> Iterator[Row]:
    for what, words in plan.of(RUNS, dict(list(RUNS.items())[:1])).items():
        yield attempt("run of 300 steps", what, lambda words=words: _run(plan, words))


def _run(plan: Plan, words: list[str]) -> tuple[str, Figures]:
    """`hina-kohya train` in a process of its own, which takes the GPU where there is one."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if plan.device.type == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        sizes = plan.of([], ["--max_train_steps", "2", "--lr_warmup_steps", "0", "--judge", "0"])
        place = ["--output_dir", folder, "--logging_dir", str(Path(folder) / "logs")]
        command = [sys.executable, "-m", "hina_kohya.cli", "train", "--config_file", str(CONFIG), *place, *sizes]
        process = subprocess.run(
            [*command, *words], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
        if process.returncode:
            raise RuntimeError((process.stderr.strip() or process.stdout.strip()).splitlines()[-1])
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        on = process.stdout.rpartition("; on ")[2].split()[0]
    accuracy = summary.get("judged", {}).get("taught", {}).get("after", {}).get("accuracy")
    figures = {
        "device": on,
        "ms_per_step": summary["ms_per_step"],
        "loss_first": summary["loss"]["first"],
        "loss_last": summary["loss"]["last_average"],
        "taught": accuracy,
        "seconds": summary["seconds"],
    }
    remark = "" if accuracy is None else f"; {accuracy:.1%} of what it drew is right"
    text = (
        f"on {on}, {figures['ms_per_step']} ms a step, loss {figures['loss_first']:.4f} to "
        f"{figures['loss_last']:.4f}{remark}"
    )
    return text, figures


# LyCORIS: module class, arguments. Widths and tokens of SDXL's deepest blocks at 1024 pixels, a batch of 4.
ADAPTERS = {
    "LoRA rank 8": ("locon", "LoConModule", {"lora_dim": 8, "alpha": 8}),
    "LoKr factor 8, full": ("lokr", "LokrModule", {"lora_dim": 100_000, "alpha": 1, "factor": 8, "full_matrix": True}),
    "LoKr factor 8, rank 8": ("lokr", "LokrModule", {"lora_dim": 8, "alpha": 8, "factor": 8}),
    "LoHa rank 8": ("loha", "LohaModule", {"lora_dim": 8, "alpha": 8}),
}


def forwards(plan: Plan) -> Iterator[Row]:
    for half in (False, True):
        for what in ADAPTERS:
            name = f"{what}, {'bf16 autocast' if half else 'fp32'}"
            yield attempt("LyCORIS bypass_mode", name, lambda what=what, half=half: _forward(plan, what, half))


def _forward(plan: Plan, what: str, half: bool) -> tuple[str, Figures]:
    """Forward and backward of one linear layer: bare, with the weight rebuilt, and with `bypass_mode`."""
    width, tokens = plan.of((1280, 4096), (64, 16))
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).to(plan.device)
    times, outputs, peaks = {}, {}, {}
    for way, bypass in {"bare": None, "rebuilt": False, "bypass": True}.items():
        layer = torch.nn.Linear(width, width, bias=False)
        with torch.no_grad():
            layer.weight.normal_(std=width**-0.5, generator=torch.Generator().manual_seed(1))
        layer.requires_grad_(False).to(plan.device)
        module = None if bypass is None else _adapted(layer, what, bypass, plan.device)

        def once(layer=layer) -> torch.Tensor:
            source = x.detach().requires_grad_()
            with torch.autocast(plan.device.type, torch.bfloat16, enabled=half):
                y = layer(source)
            y.float().square().mean().backward()
            return y.detach()

        outputs[way] = once()
        for _ in range(plan.of(3, 1)):
            once()
        times[way] = measure.spread([measure.timed(once, plan.device)[0] for _ in range(plan.of(20, 2))])["median"]
        peaks[way] = round(measure.peak_bytes(once, plan.device) / 2**20, 1)
        del module
    off = (outputs["bypass"] - outputs["rebuilt"]).float().norm() / outputs["rebuilt"].float().norm()
    figures: Figures = {"ms": times, "peak_mib": peaks, "off": off.item()}
    text = (
        f"{times['rebuilt']:.3g} ms rebuilt, {times['bypass']:.3g} ms by bypass, {times['bare']:.3g} ms bare; "
        f"{peaks['rebuilt']}, {peaks['bypass']}, {peaks['bare']} MiB; outputs apart by {figures['off']:.1g}"
    )
    return text, figures


def _adapted(layer: torch.nn.Linear, what: str, bypass: bool, device: torch.device) -> torch.nn.Module:
    from importlib import import_module  # noqa: PLC0415

    file, name, arguments = ADAPTERS[what]
    module = getattr(import_module(f"lycoris.modules.{file}"), name)("adapter", layer, bypass_mode=bypass, **arguments)
    with torch.no_grad():
        for number, param in enumerate(module.parameters()):
            param.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    module.to(device).apply_to()
    return module
