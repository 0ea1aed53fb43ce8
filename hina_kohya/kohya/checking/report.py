"""A check as a few lines: how the file was taken, one block a finding, and what to type next."""

import dataclasses as dc
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hina_kohya.kohya import architectures
from hina_kohya.kohya.checking import placeholders
from hina_kohya.kohya.checking.context import Context, Hooks, context_of
from hina_kohya.kohya.checking.finding import Finding, Level
from hina_kohya.kohya.checking.reading import load, read_config
from hina_kohya.kohya.checking.rules import findings
from hina_kohya.kohya.checking.rules.datasets import dataset_findings, is_dataset, trainer_of_datasets
from hina_kohya.kohya.checking.schema import Schema
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.call_sites import Outcome
from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.errors import UserError


@dc.dataclass(frozen=True)
class Report:
    """context: None for a file of datasets; to_fill_in: keys that still hold a `<...>`."""

    file: Path
    findings: tuple[Finding, ...]
    context: Context | None = None
    to_fill_in: tuple[str, ...] = ()
    architecture: str | None = None

    @property
    def failed(self) -> bool:
        return any(each.level is Level.ERROR for each in self.findings)


def check(
    path: str,
    words: Sequence[str] = (),
    *,
    checkout: Checkout | None = None,
    script: str | None = None,
    arch: str | None = None,
    launched: bool = False,
) -> Report:
    """Reads a training TOML (or a dataset's) as its trainer would, and says what is wrong with it.

    words   : further words of the command line
    checkout: the one whose options count; else that of the environment or of this folder, else the options shipped here
    launched: the run is started through hina_kohya.launch

    Raises UserError for what cannot be read.
    """
    if arch is not None:
        architectures.get(arch)
    reading = read_config(path)
    content = load(reading.file)
    if is_dataset(content):
        trainer = checkout.trainer if checkout else trainer_of_datasets(content)
        tables = Schema(trainer, checkout or checkouts.find(trainer)).datasets
        return Report(reading.file, tuple(dataset_findings(content, trainer, tables, reading.file)))
    context = context_of(reading, words, checkout, script, arch, launched)
    return Report(
        reading.file,
        tuple(findings(context)),
        context,
        tuple(placeholders.to_fill_in(context.reading.values)),
        arch or context.trainer.architecture(context.args),
    )


def text(report: Report) -> list[str]:
    return [*_heading(report), *(line for each in report.findings for line in _block(each)), *_summary(report)]


def next_step(report: Report, failed: bool) -> str:
    """What to type now."""
    if failed:
        return "next: correct the file, and check again"
    context = report.context
    if report.to_fill_in or context is None:
        return (
            f"next: fill in {', '.join(report.to_fill_in)}"
            if report.to_fill_in
            else "next: check the training TOML that names it"
        )
    launcher = "hina-kohya launch" if context.hooks.why.startswith("started with") else "accelerate launch"
    return f"next: {launcher} {context.trainer.script} --config_file {report.file}"


def forecast_table(report: Report) -> str:
    """Groups, roles, decay and bytes of this run. Raises UserError for what the network or the optimizer refuses."""
    from hina_kohya.kohya.forecast import forecast, table  # noqa: PLC0415 (starts a process that imports torch)

    context = report.context
    assert context is not None
    assert report.architecture is not None
    network, args = context.network, context.args
    inner = {"inner": network.inner} if network.module == "hina_kohya.network" else {}
    made = forecast(
        report.architecture,
        network.module,
        network_dim=args["network_dim"],
        network_alpha=args["network_alpha"],
        network_args={**inner, **network.arguments},
        learning_rate=args["learning_rate"],
        unet_lr=args["unet_lr"],
        text_encoder_lr=args["text_encoder_lr"],
        train_unet=context.trains_unet,
        train_text_encoder=context.trains_text_encoder,
        optimizer_type=context.optimizer.type,
        optimizer_args=context.optimizer.words,
        sd_scripts=context.schema.checkout.root if context.schema.checkout else None,
        hooked=context.hooks.active,
        dtype="bfloat16" if context.on("full_bf16") else "float16" if context.on("full_fp16") else "float32",
    )
    return table(made)


def is_refusal(report: Report, mistake: UserError) -> bool:
    """Whether a forecast failed because the run would, and not for want of the network's code."""
    known = report.context is not None and report.context.network.facts is not None
    return known and "cannot be forecast" not in str(mistake)


def _heading(report: Report) -> list[str]:
    context = report.context
    if context is None:
        return [f"{report.file}: a file for dataset_config", ""]
    lines = [
        f"{report.file} for {context.trainer.script} of {context.schema.trainer.name} ({context.trainer.why})",
        f"options of {context.schema.origin}",
        _hooks(context.hooks),
        "",
    ]
    checkout = context.schema.checkout
    if checkout is not None and checkout.python != sys.executable:
        lines.insert(
            2, f"packages were looked up in {sys.executable}, and that checkout has its own: {checkout.python}"
        )
    return lines


def _hooks(hooks: Hooks) -> str:
    if not hooks.installed:
        return "hina_kohya's hooks are not active"
    if hooks.site.outcome is Outcome.NOT_LOOKED_AT:
        return f"hina_kohya's hooks are installed ({hooks.why}); whether they act was not looked at: {hooks.site.why}"
    return f"hina_kohya's hooks: {hooks.site.outcome.value}, {hooks.why}; {hooks.site.why}"


def _block(finding: Finding) -> list[str]:
    lines = [f"{finding.level.value}: {finding.key}: {finding.what}", f"  because  {finding.evidence}"]
    return [*lines, *([f"  write    {finding.write}"] if finding.write else []), ""]


def _summary(report: Report) -> list[str]:
    counts = Counter(each.level for each in report.findings)
    said = [f"{counts[level]} {level.value}{'s' * (counts[level] > 1)}" for level in Level if counts[level]]
    return [", ".join(said) or "no findings"]
