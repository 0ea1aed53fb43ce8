"""Options of the run and of its dataset file that do not go together: seen with both merged."""

from collections.abc import Iterator

from hina_kohya.check.datasets import Subset
from hina_kohya.check.edit import put
from hina_kohya.check.finding import Finding, error, not_looked_at, warning
from hina_kohya.check.rules import rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# What verify_bucket_reso_steps wants in each script.
_RESO_STEPS = {
    "train_network.py": 64, "sdxl_train_network.py": 32, "flux_train_network.py": 32, "sd3_train_network.py": 32,
    "lumina_train_network.py": 16, "anima_train_network.py": 16, "hunyuan_image_train_network.py": 32,
}  # fmt: skip
_CAPTIONS = (".txt", ".caption", ".tags")


def subsets(run: Run) -> Iterator[Subset]:
    for dataset in run.datasets:
        yield from dataset.subsets


def any_subset(run: Run, *names: str) -> bool:
    """Whether an option is on in a subset, or in the run where no subset is known."""
    all_subsets = list(subsets(run))
    return any(each.get(name) for each in all_subsets for name in names) if all_subsets else any(map(run.on, names))


@rule_of(SD_SCRIPTS)
def bucket_steps(run: Run) -> Iterator[Finding]:
    multiple = _RESO_STEPS.get(run.trainer.script)
    values = {each.get("bucket_reso_steps") for each in run.datasets if each.get("enable_bucket")}
    values |= {run.args["bucket_reso_steps"]} if not run.datasets and run.on("enable_bucket") else set()
    for steps in values:
        if run.trainer.certain and multiple and isinstance(steps, int) and (steps <= 0 or steps % multiple):
            what = f"{steps} is no multiple of {multiple}, which {run.trainer.script} wants"
            evidence = "measured: assertion (verify_bucket_reso_steps), before the images are read"
            edit = put(bucket_reso_steps=multiple) if run.given("bucket_reso_steps") == steps else None
            yield error("bucket_reso_steps", what, evidence, edit, f"write bucket_reso_steps = {multiple}")


@rule_of(SD_SCRIPTS)
def conditioning_without_mask(run: Run) -> Iterator[Finding]:
    if any(each.own.get("conditioning_data_dir") for each in subsets(run)) and not run.on("masked_loss"):
        what = "only masked_loss reads images of conditioning_data_dir; without it the run stops"
        yield error("conditioning_data_dir", what, f"measured ({at('ConfigSanitizer')})", put(masked_loss=True))


@rule_of(SD_SCRIPTS)
def captions_not_found(run: Run) -> Iterator[Finding]:
    """The default ending is .caption, and most people's files end in .txt."""
    for each in subsets(run):
        ending = str(each.get("caption_extension") or ".caption")
        endings = each.endings()
        others = [caption for caption in _CAPTIONS if caption in endings]
        if each.has_images and ending not in endings and others and not each.get("metadata_file"):
            what = f"{each.folder} has {others[0]} files, and those that are read end in {ending}: no caption is found"
            edit = put(caption_extension=others[0]) if run.source.tables is None else None
            advice = f'write caption_extension = "{others[0]}" in the dataset file'
            yield warning(
                "caption_extension", what, "measured: captions are then the folder's class words", edit, advice
            )
            return


@rule_of(SD_SCRIPTS)
def no_images(run: Run) -> Iterator[Finding]:
    folders = [each for each in subsets(run) if each.folder is not None and not each.get("metadata_file")]
    empty = [each for each in folders if not each.has_images]
    if empty and len(empty) == len(folders):
        what = f"there is no image in {empty[0].folder}"
        yield error("train_data_dir", what, "measured: the run ends with exit code 0 and trains nothing")


@rule_of(SD_SCRIPTS)
def data_not_looked_at(run: Run) -> Iterator[Finding]:
    """A class of the user's own makes the dataset."""
    if run.given("dataset_class"):
        yield not_looked_at(
            "dataset_class", f"{run.args['dataset_class']} makes the dataset; its images were not looked at"
        )
