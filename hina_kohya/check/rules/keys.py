"""Keys that the trainer does not read."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from hina_kohya.check import values
from hina_kohya.check.edit import Edit, argument, drop, put, rename
from hina_kohya.check.finding import Finding, error, note, warning
from hina_kohya.check.network import OPTION as NETWORK_ARGS
from hina_kohya.check.optimizer import OPTION as OPTIMIZER_ARGS
from hina_kohya.check.reading.source import COMMAND_LINE
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.check.schema import LYCORIS, scripts_with
from hina_kohya.check.spelling import alike
from hina_kohya.text import nearest
from hina_kohya.trainers.facts import foreign_names

_OF_A_DATASET = ("general", "datasets", "subsets")
_LISTS = ("optimizer_args", "network_args", "lr_scheduler_args")
_OF_THE_FILE = ("config_file", "output_config")
# Beyond these, they are counted only: nobody reads a list of thousands, or wants to wait for it.
_NAMED = 50


@rule
def unknown_key(run: Run) -> Iterator[Finding]:
    unknown = [key for key in run.source.values if key not in run.options and key not in _OF_THE_FILE]
    silent = [key for key in unknown if key not in run.source.typed and not _type_of_network(key, run)]
    of_programs = {key: name for key in silent if (name := _program(key))}
    idle = [key for key in silent if key not in of_programs and _asks_nothing(run.source.values[key])]
    rest = [key for key in unknown if key not in of_programs and key not in {*idle}]
    for key in rest[:_NAMED]:
        yield _about(key, run.source.values[key], run)
    if len(rest) > _NAMED:
        what = f"and {len(rest) - _NAMED:,} keys more that nobody reads; is this the file that was meant?"
        yield warning(rest[_NAMED], what, f"read: {run.at('read_config_from_file')}")
    for program in dict.fromkeys(of_programs.values()):
        keys = [key for key, name in of_programs.items() if name == program]
        yield note(keys[0], f"keys that {program} writes for itself, and no trainer reads: {_some(keys)}")
    if idle:
        yield note(idle[0], f"keys that ask for nothing, and no trainer reads: {_some(idle)}")


def _about(key: str, value: Any, run: Run) -> Finding:
    what, edit = _meaning(key, value, run)
    if key in run.source.typed:
        what = what.replace(", and ignores it", "")
        return error(key, f"there is no option --{key}: {what}", "argparse leaves with exit code 2", edit)
    evidence = f"measured: keys without an option stay unread, without a word ({run.at('read_config_from_file')})"
    return warning(key, what, evidence, edit)


def _meaning(key: str, value: Any, run: Run) -> tuple[str, Edit | None]:  # noqa: PLR0911 (a table of cases)
    """What happens to a key that is not known, and what was meant."""
    section = run.source.sections.get(key, "")
    plain = key.lstrip("-\ufeff").replace("-", "_")
    if key.startswith("\ufeff"):
        return "the file begins with a byte-order mark, which becomes part of this name; save it as UTF-8", None
    if key in _OF_A_DATASET or section in _OF_A_DATASET:
        return 'it belongs into a file of its own, which dataset_config = "dataset.toml" names', None
    if section in _LISTS:
        edit = argument(section, run.words(section), key, _text(section, value))
        return f"{section} is a list and not a section", Edit(removes=(key,)) + edit
    if scripts := [each for each in scripts_with(key, run.schema.trainer) if each in run.schema.scripts]:
        return f"{run.trainer.script} does not read it; {', '.join(scripts)} would", drop(key)
    if plain in run.options:
        return f"its name is {plain}", _renamed(key, plain, value, run) or drop(key)
    if edit := _type_of_network(key, run):
        return f"{run.schema.trainer.name} does not know it; LyCORIS makes such a network", edit
    if (edit := _foreign(key, plain, value, run)) is not None:
        place = ", ".join(each for each in edit.keys if each != key)
        verb = "it belongs into" if edit.words else f"{run.schema.trainer.name} calls it"
        return f"{verb} {place}", edit
    if near := _near(plain, tuple(run.options)):
        hint = f"; {near[0]} is given, too" if near[0] in run.source.values else f"; did you mean {near[0]}?"
        edit = drop(key) if near[0] in run.source.values else _renamed(key, near[0], value, run)
        return f"{run.schema.trainer.name} does not know it, and ignores it{hint}", edit
    return f"{run.schema.trainer.name} does not know it, and ignores it", None


@lru_cache(maxsize=1024)
def _near(name: str, names: tuple[str, ...]) -> list[str]:
    """The one option that is spelt alike; remembered, since every line that is tried asks again."""
    return [each for each in nearest(name, names)[:1] if alike(name, each)]


def _renamed(key: str, name: str, value: Any, run: Run) -> Edit | None:
    """Only where the value fits, and nothing else gives the option."""
    option = run.options[name]
    value = value if values.fits(option, value) else values.meant(option, value)
    is_outside = option.choices and value not in option.choices
    return None if name in run.source.values or value is None or is_outside else rename(key, name, value)


def _foreign(key: str, plain: str, value: Any, run: Run) -> Edit | None:
    if plain in foreign_names.TWO_ENCODERS and "text_encoder_lr" not in run.source.values:
        rates = [run.source.values.get(each) for each in foreign_names.TWO_ENCODERS]
        rates = [each for each in rates if isinstance(each, float) or (isinstance(each, str) and _is_number(each))]
        return drop(*foreign_names.TWO_ENCODERS) + put(text_encoder_lr=[float(each) for each in rates])
    name = foreign_names.OPTIONS.get(plain, "")
    if name in run.options:
        return _renamed(key, name, value, run)
    if plain in foreign_names.OF_NETWORKS and run.network.facts and plain in run.network.facts.reads:
        return drop(key) + argument(NETWORK_ARGS, run.words(NETWORK_ARGS), plain, _text(NETWORK_ARGS, value))
    if plain in foreign_names.OF_OPTIMIZERS or (run.optimizer.is_hina and plain.startswith("use_")):
        return drop(key) + argument(OPTIMIZER_ARGS, run.words(OPTIMIZER_ARGS), plain, _text(OPTIMIZER_ARGS, value))
    return None


def _type_of_network(key: str, run: Run) -> Edit | None:
    """Of a GUI's field for the kind of network, where the run has another."""
    value = run.source.values[key]
    kind = foreign_names.ALGORITHMS.get(str(value).lower()) if key in foreign_names.TYPES_OF_NETWORKS else None
    if kind is None or kind in (run.network.algorithm, run.network.arguments.get("algo")):
        return None
    words = run.words(NETWORK_ARGS)
    edit = drop(key) + argument(NETWORK_ARGS, words, "algo", kind)
    if run.network.is_lycoris:
        return edit
    # LyCORIS' own default stops on SD 1.x.
    return edit + put(network_module=LYCORIS) + argument(NETWORK_ARGS, words, "preset", "attn-mlp")


def _text(option: str, value: Any) -> str:
    """A value as a word of network_args or optimizer_args, which are read as Python."""
    plain = isinstance(value, str) and _is_python(value) if option != NETWORK_ARGS else not isinstance(value, bool)
    return str(value) if plain else repr(value)


def _is_python(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _program(key: str) -> str:
    return next((name for name, keys in foreign_names.OF_PROGRAMS.items() if key in keys), "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _asks_nothing(value: Any) -> bool:
    return value is False or value in ("", None, [], {})


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + f" and {len(keys) - 6} more" * (len(keys) > 6)


@rule
def repeated_key(run: Run) -> Iterator[Finding]:
    for key, entries in run.source.repeated.items():
        if any(each != entries[-1] for each in entries):
            listing = ", ".join(map(str, entries))
            if key in run.source.typed:
                what, evidence = f"it is given twice ({listing}); the last one counts", "so argparse does"
            else:
                what = f"several sections give it ({listing}); the last one counts"
                evidence = f"sections are flattened into one ({run.at('read_config_from_file')})"
            yield warning(key, what, evidence, put(**{key: entries[-1]}))


@rule
def zero_left_out(run: Run) -> Iterator[Finding]:
    """kohya_ss writes no option that is 0, and the trainer's default may be another number."""
    for key in (each for each in run.source.dropped if each in run.options):
        what = f"the GUI leaves a 0 out, and the trainer's default is {run.options[key].unset}"
        evidence = "read: train_model in kohya_gui/lora_gui.py"
        yield warning(key, what, evidence, advice=f"write it into additional_parameters: --{key} 0")


@rule
def command_line(run: Run) -> Iterator[Finding]:
    """What argparse refuses: it leaves with exit code 2, before anything is loaded."""
    evidence = "argparse leaves with exit code 2"
    for key, why in run.source.refused.items():
        if key in run.options:
            value = values.meant(run.options[key], run.source.values.get(key))
            edit = None if value is None or "choice" in why else put(**{key: value})
            yield error(key, f"--{key}: {why}", evidence, edit)
        elif key.startswith("-"):
            yield error(COMMAND_LINE, why, evidence)
    if stray := run.source.stray:
        yield error(COMMAND_LINE, f"words that belong to no option: {' '.join(stray[:5])}", evidence)
    if run.source.broken:
        yield error(COMMAND_LINE, run.source.broken, "its shell starts the rest as a command of its own")
