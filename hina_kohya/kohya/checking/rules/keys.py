"""Keys that the trainer does not read."""

from collections.abc import Iterator

from hina_kohya.core.hyper import nearest
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.reading import COMMAND_LINE, toml_line
from hina_kohya.kohya.checking.rules import rule
from hina_kohya.kohya.checking.schema import scripts_with

_OF_A_DATASET = ("general", "datasets", "subsets")
_LISTS = ("optimizer_args", "network_args", "lr_scheduler_args")
_OF_THE_FILE = ("config_file", "output_config")


@rule
def unknown_key(context: Context) -> Iterator[Finding]:
    for key, value in context.reading.values.items():
        if key in context.options or key in _OF_THE_FILE:
            continue
        section = context.reading.sections.get(key, "")
        near = _near(key, context)
        if key.startswith("\ufeff"):
            what, fix = (
                "the file begins with a byte-order mark, which becomes part of this name",
                "save it as UTF-8 without BOM",
            )
        elif key in _OF_A_DATASET or section in _OF_A_DATASET:
            what, fix = "it belongs into a file of its own", 'dataset_config = "dataset.toml"'
        elif section in _LISTS:
            what, fix = f"{section} is a list and not a section", toml_line(section, [f"{key}={value}"])
        elif scripts := [each for each in scripts_with(key, context.schema.trainer) if each in context.schema.scripts]:
            what, fix = f"{context.trainer.script} does not read it; {', '.join(scripts)} would", f"# {key}: remove it"
        else:
            what, fix = (
                f"{context.schema.trainer.name} does not know it, and ignores it",
                toml_line(near, value) if near else f"# {key}: remove it",
            )
        place = context.at("read_config_from_file")
        yield error(key, what, f"measured: keys without an option stay unread, without a word ({place})", fix)


@rule
def repeated_key(context: Context) -> Iterator[Finding]:
    for key, given in context.reading.repeated.items():
        if any(each != given[-1] for each in given):
            what = f"several sections give it ({', '.join(map(str, given))}); the last one counts"
            evidence = f"sections are flattened into one ({context.at('read_config_from_file')})"
            yield warning(key, what, evidence, toml_line(key, given[-1]))


@rule
def command_line(context: Context) -> Iterator[Finding]:
    for refused in context.reading.refused:
        word = refused.rpartition("--")[2].partition("=")[0]
        near = _near(word, context)
        yield error(
            COMMAND_LINE, refused, "argparse leaves with exit code 2", f"--{near}" if near and near != word else ""
        )


def _near(key: str, context: Context) -> str:
    """The one option that is spelt alike."""
    plain = key.lstrip("-\ufeff").replace("-", "_")
    if plain in context.options:
        return plain
    return next(iter(nearest(plain, context.options)), "")
