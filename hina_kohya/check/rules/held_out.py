"""Images that are held out: whether there are any, whether they are not trained on, and who asks for them."""

from collections.abc import Iterator
from pathlib import Path

from hina_kohya.check.datasets import Dataset
from hina_kohya.check.edit import argument, put
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.network import OPTION
from hina_kohya.check.rules import rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.network_args import HELD_OUT, BestOptions, best_options
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


def _asked(run: Run) -> BestOptions:
    """What the hooks will do with the held-out loss."""
    try:
        return best_options(run.words(OPTION)) if run.hooks.active else BestOptions()
    except UserError:  # said elsewhere
        return BestOptions()


def _split(dataset: Dataset) -> bool:
    share = dataset.get("validation_split")
    return isinstance(share, float) and 0 < share <= 1


@rule_of(SD_SCRIPTS)
def nothing_held_out(run: Run) -> Iterator[Finding]:
    options, share = _asked(run), run.args["validation_split"]
    datasets = run.datasets or (Dataset("the run", {}, (run.args,), ()),)
    if options and not options.held_out and not any(map(_split, datasets)):
        what = f"{options} needs images that are held out, and validation_split is {share or 0}"
        edit = put(validation_split=0.1, validation_seed=42)
        yield error("validation_split", what, "hina_kohya reads it: the run stops before its first step", edit)


@rule_of(SD_SCRIPTS)
def held_out_is_trained_on(run: Run) -> Iterator[Finding]:
    """Each part of the split shuffles by itself; a dataset of a metadata file is not split at all."""
    say, options = (error, _asked(run)) if _asked(run) else (warning, BestOptions())
    then = f": {options} stops the run" if options else ""
    for dataset in filter(_split, run.datasets or (Dataset("the run", {}, (run.args,), ()),)):
        if any(each.get("metadata_file") for each in dataset.subsets) or run.given("in_json"):
            what = f"images of a metadata file are not split: the held-out ones are all trained on{then}"
            advice = "give image_dir, with captions beside the images"
            yield say("validation_split", what, f"its source ({at('split_train_val')})", None, advice)
            return
        if dataset.get("validation_seed") is None:
            what = f"without a seed most of the held-out images are trained on, too{then}"
            evidence = f"measured: 10 of 10, with 100 images ({at('split_train_val')})"
            yield say("validation_seed", what, evidence, put(validation_seed=42))
            return


@rule_of(SD_SCRIPTS)
def holds_out_by_itself(run: Run) -> Iterator[Finding]:
    if (options := _asked(run)).held_out:
        what = f"{HELD_OUT}={options.held_out} is for musubi-tuner; here validation_split holds images out"
        edit = put(validation_split=0.1, validation_seed=42) + argument(OPTION, run.words(OPTION), HELD_OUT)
        yield error(OPTION, what, "hina_kohya reads it: the run stops before its first step", edit)


@rule_of(MUSUBI)
def nothing_held_out_for_musubi(run: Run) -> Iterator[Finding]:
    options = _asked(run)
    if options and not options.held_out:
        what = f"{options} needs images that are held out"
        advice = (
            f"add {HELD_OUT}=held_out.toml to network_args, a dataset config of cached images that are not trained on"
        )
        yield error(OPTION, what, "hina_kohya reads it: the run stops before its first step", None, advice)
    elif options and not Path(options.held_out).is_file():
        what = f"{HELD_OUT}={options.held_out} is no file"
        yield error(OPTION, what, "looked", None, "give a dataset config as dataset_config is one")
