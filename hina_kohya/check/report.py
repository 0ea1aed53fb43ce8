"""A check: what a user has, read and looked at, with the lines that mend it."""

import dataclasses as dc
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hina_kohya.check import placeholders
from hina_kohya.check.finding import Finding, Level
from hina_kohya.check.mending import Remedy, remedies
from hina_kohya.check.process import SHARED, Listener
from hina_kohya.check.reading import kohya_ss, read
from hina_kohya.check.reading.source import Form, Source
from hina_kohya.check.rules import findings
from hina_kohya.check.rules.datasets import Table, dataset_findings, trainer_of_datasets
from hina_kohya.check.run import How, Run, run_of
from hina_kohya.check.schema import Schema
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts import architectures
from hina_kohya.trainers.trainer import Trainer

MISSING_HERE = 3


@dc.dataclass(frozen=True)
class Report:
    """run: None for a file of datasets; to_fill_in: keys that still hold a `<...>`."""

    source: Source
    findings: tuple[Finding, ...]
    remedies: tuple[Remedy, ...]
    run: Run | None = None
    to_fill_in: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[Level]:
        return Counter(each.level for each in self.findings)

    @property
    def architecture(self) -> str | None:
        return self.run.architecture if self.run else None

    @property
    def exit_code(self) -> int:
        """1 where the run would stop, 3 where only something is missing in this environment."""
        return 1 if self.counts[Level.ERROR] else MISSING_HERE if self.counts[Level.MISSING] else 0

    def remedy(self, finding: Finding) -> Remedy | None:
        return next((each for each in self.remedies if finding in each.findings), None)


def check(
    what: str | Sequence[str],
    words: Sequence[str] = (),
    *,
    checkout: Checkout | None = None,
    script: str | None = None,
    arch: str | None = None,
    launched: bool = False,
) -> Report:
    """Reads what a run is started with as its trainer would, and says what is wrong with it.

    what    : the name of a file, or the words of a command line
    words   : further words of the trainer's command line, which win
    checkout: the one whose options count; else that of the environment or of this folder, else the options shipped here
    launched: the run is started through hina_kohya.launch

    Raises UserError for what cannot be read.
    """
    if arch is not None:
        architectures.get(arch)
    source = read([what] if isinstance(what, str) else what).followed_by(words)
    return of_source(source, How(checkout, script, arch, launched))


def of_source(source: Source, how: How) -> Report:
    """Raises UserError for a script that there is not."""
    if source.form is Form.DATASETS:
        return _of_datasets(source, how.checkout)
    run = run_of(source, how)
    result = tuple(findings(run))
    mending = tuple(remedies(run.source, result, lambda trial: findings(run_of(trial, how))))
    return Report(run.source, result, mending, run, tuple(_to_fill_in(run)))


def _to_fill_in(run: Run) -> list[str]:
    values = run.source.values
    blanks = kohya_ss.FILLED_IN if run.source.form is Form.KOHYA_SS and not values.get("dataset_config") else ()
    return [*placeholders.to_fill_in(values), *(key for key in blanks if not values.get(key))]


def _of_datasets(source: Source, checkout: Checkout | None) -> Report:
    content, file = source.tables, source.tables_file
    assert content is not None
    assert file is not None
    trainer = checkout.trainer if checkout else trainer_of_datasets(content)
    tables = Schema(trainer, checkout or checkouts.find(trainer)).datasets
    result = tuple(_of_tables(content, trainer, tables, file))
    mending = remedies(source, result, lambda trial: _of_tables(trial.tables or {}, trainer, tables, file))
    return Report(source, result, tuple(mending))


def _of_tables(content: Mapping[str, Any], trainer: Trainer, tables: Mapping[str, Table], file: Path) -> list[Finding]:
    return [dc.replace(each, rule="dataset_unreadable") for each in dataset_findings(content, trainer, tables, file)]


def forecast_of(report: Report, listener: Listener | None = None) -> tuple[str, bool]:
    """Groups, roles, decay and bytes of this run, and whether nothing in it stops.

    Raises UserError for what the network or the optimizer refuses.
    """
    from hina_kohya.check.forecast import forecast, table  # noqa: PLC0415 (only where one is made)

    assert report.run is not None
    result = forecast(**arguments_of(report.run), process=SHARED, listener=listener)
    return table(result), not any(each.startswith("error: ") for each in result.faults)


def arguments_of(run: Run) -> dict[str, Any]:
    """The arguments of `forecast.forecast` and `forecast.parameters` for a run whose model is known."""
    network, args = run.network, run.args
    inner = {"inner": network.inner} if network.module == "hina_kohya.network" else {}
    return {
        "architecture": run.architecture,
        "network_module": network.module,
        "network_dim": args["network_dim"],
        "network_alpha": args["network_alpha"],
        "network_args": {**inner, **network.arguments},
        "learning_rate": args["learning_rate"],
        "unet_lr": args["unet_lr"],
        "text_encoder_lr": args["text_encoder_lr"],
        "train_unet": run.trains_unet,
        "train_text_encoder": run.trains_text_encoder,
        "optimizer_type": run.optimizer.type,
        "optimizer_args": run.optimizer.words,
        "sd_scripts": run.schema.checkout.root if run.schema.checkout else None,
        "hooked": run.hooks.active,
        "dtype": run.dtype,
        "resume": run.state.folder if run.state and run.state.is_one else None,
    }


def is_refusal(report: Report, mistake: UserError) -> bool:
    """Whether a forecast failed because the run would, and not for want of the network's code."""
    is_known = report.run is not None and report.run.network.facts is not None
    return is_known and "cannot be forecast" not in str(mistake)
