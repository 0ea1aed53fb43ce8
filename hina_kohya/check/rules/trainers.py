"""Which trainer a run is for, and whether its model is one for it."""

from collections.abc import Iterator

from hina_kohya.check.finding import Finding, error, not_looked_at, warning
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.check.trainer import SCRIPTS_OF_KINDS, kind_of_model
from hina_kohya.trainers.call_sites import Outcome


@rule
def trainer_unsure(run: Run) -> Iterator[Finding]:
    if not run.trainer.certain:
        what = f"nothing says for certain which trainer this is for; it was read as for {run.trainer.script}"
        yield not_looked_at("--script", what, f"name the trainer: --script {run.trainer.script}, or another one")


@rule
def model_of_another_trainer(run: Run) -> Iterator[Finding]:
    """By the header of the model's file, which is not loaded."""
    kind = kind_of_model(run.args, run.schema.trainer)
    script = SCRIPTS_OF_KINDS[run.schema.trainer.name].get(kind)
    if kind and script != run.trainer.script and run.trainer.certain:
        key = "dit" if "dit" in run.options and run.args.get("dit") else "pretrained_model_name_or_path"
        what = f"{run.args[key]} is a model of {kind}, and {run.trainer.script} does not load one"
        advice = f"start {script}" if script else f"no script of {run.schema.trainer.name} trains it"
        # `dit` of one kind may be trained by several scripts of musubi-tuner.
        level = error if script and run.schema.trainer.name == "sd-scripts" else warning
        yield level(key, what, "the names of its tensors", advice=advice)


@rule
def unseen(run: Run) -> Iterator[Finding]:
    """What reading the source could not tell."""
    for each in run.source.unseen:
        yield not_looked_at(each.what, each.why)


@rule
def hooks_not_looked_at(run: Run) -> Iterator[Finding]:
    if run.hooks.installed and run.hooks.site.outcome is Outcome.NOT_LOOKED_AT:
        yield not_looked_at("hooks", f"whether hina_kohya's hooks act: {run.hooks.site.why}")


@rule
def network_not_forecast(run: Run) -> Iterator[Finding]:
    """Where there is no skeleton of the model, the network is not made."""
    if run.trainer.certain and run.network.inner and run.architecture is None:
        sizes = "; --arch sd3.5-medium or sd3.5-large makes one" * run.trainer.script.startswith("sd3")
        yield not_looked_at("network", f"it was not made: there is no skeleton of {run.trainer.script}'s model{sizes}")
