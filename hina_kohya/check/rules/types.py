"""Values of the wrong type or outside the choices: argparse would refuse them, a TOML lets them through."""

from collections.abc import Iterator
from math import isfinite
from typing import Any

from hina_kohya.check import placeholders, values
from hina_kohya.check.edit import drop, put, toml_value
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.check.schema import Option
from hina_kohya.text import nearest
from hina_kohya.trainers.facts import strictness
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# A rule of its own says what is missing.
_NEEDED = ("pretrained_model_name_or_path", "network_module", "output_dir", "train_data_dir", "dataset_config")
_WORDS = {
    "flag": "true or false",
    "int": "a whole number",
    "float": "a number",
    "steps": "a number",
    "str": "text in quotes",
}


@rule
def wrong_type(run: Run) -> Iterator[Finding]:
    """An error where the trainer is known to stop, a warning where it does something else than was meant."""
    for key, option in run.options.items():
        if key not in run.source.values or key in run.source.typed:
            continue
        value = run.source.values[key]
        if (
            values.fits(option, value)
            or placeholders.is_one(value)
            or (key == "optimizer_args" and _is_forgiven(run, value))
        ):
            continue
        if not value and not option.unset and not strictness.stops(key, value):  # as good as not given
            continue
        correction = values.meant(option, value)
        if option.type == "flag" and bool(value) == correction:
            continue
        kind = f"a list of {_WORDS[option.type]}" if option.list else _WORDS[option.type]
        what = f"{toml_value(value)} is not {kind}"
        if option.type == "flag":
            what += f"; it counts as {'true' if value else 'false'}"
        failure = strictness.stops(key, value) if run.schema.trainer is SD_SCRIPTS else ""
        edit = drop(key) if correction is None and option.unset is None else put(**{key: _default(option, correction)})
        yield (error if failure else warning)(key, what, failure or _used_as_it_is(run), edit)


@rule_of(SD_SCRIPTS)
def empty_text(run: Run) -> Iterator[Finding]:
    """Trainers ask of some options whether they are None, and an empty text is not."""
    for key, value in run.source.values.items():
        option = run.options.get(key)
        if value != "" or option is None or option.type != "str" or option.list or key in _NEEDED:
            continue
        if failure := strictness.stops(key, value):
            yield error(key, "an empty text is not the same as leaving it out", failure, drop(key))


@rule
def control_characters(run: Run) -> Iterator[Finding]:
    r"""`"C:\new\train"` holds a line break and a tab."""
    for key, value in run.source.values.items():
        if isinstance(value, str) and any(char in value for char in "\n\t\r\b\f") and ":" in value[:3]:
            what = f"{value!r} holds control characters: a backslash in double quotes begins one"
            edit = put(**{key: value.translate(_BACKSLASHES)})
            yield error(key, what, "read: TOML; write paths in single quotes, or with forward slashes", edit)


_BACKSLASHES = {ord(char): f"\\{name}" for char, name in zip("\n\t\r\b\f", "ntrbf", strict=True)}


@rule_of(SD_SCRIPTS)
def strict_type(run: Run) -> Iterator[Finding]:
    """Numbers that argparse's converters would have changed, and that the dataset's sanitizer refuses."""
    tables = run.schema.datasets
    types = tables["dataset_ascendable_schema"] | tables["subset_ascendable_schema"]
    for key, option in run.options.items():
        value = run.source.values.get(key)
        if types.get(key) == "float" == option.type and type(value) is int and key not in run.source.typed:
            yield error(
                key,
                f"{value} is a whole number, and the dataset wants {float(value)}",
                "measured: voluptuous refuses it (library/config_util.py)",
                put(**{key: float(value)}),
            )


@rule
def outside_choices(run: Run) -> Iterator[Finding]:
    """Of a TOML nobody looks at choices, so only some values stop the run."""
    for key, option in run.options.items():
        value = run.given(key)
        if value is None or not option.choices or value in option.choices or key in run.source.refused:
            continue
        if (value == "" and not option.unset) or placeholders.is_one(value):
            continue
        if strictness.harmless_choice(key, value, run.args):
            continue
        near = nearest(str(value), [str(each) for each in option.choices])
        fix = next((each for each in option.choices if str(each) in near), None)
        choices = ", ".join(str(each) for each in option.choices if each is not None)
        failure = strictness.choice_stops(key, value)
        what = f"{toml_value(value)} is none of {choices}"
        evidence = failure or f"a TOML's choices are not checked ({run.at('read_config_from_file')})"
        evidence += "; it becomes the file's ending" * (key == "save_model_as")
        yield (error if failure else warning)(key, what, evidence, None if fix is None else put(**{key: fix}))


@rule
def steps_as_fraction(run: Run) -> Iterator[Finding]:
    for key in ("lr_warmup_steps", "lr_decay_steps"):
        value = run.given(key)
        if isinstance(value, float) and value >= 1 and value != float("inf"):
            yield warning(
                key,
                f"{value} has a decimal point, so it is taken for {value:g} times the whole run",
                f"measured: 100.0 in a run of 1600 steps makes a warm-up of 160000 ({run.at('get_scheduler_fix')})",
                put(**{key: int(value)}),
            )


@rule
def not_finite(run: Run) -> Iterator[Finding]:
    for key, value in run.source.values.items():
        option = run.options.get(key)
        if option and option.type in ("float", "steps") and isinstance(value, float) and not isfinite(value):
            yield error(key, f"{value} is no number to train with", "OverflowError, or a NaN loss", drop(key))


@rule
def too_low(run: Run) -> Iterator[Finding]:
    """Counts with a bound: below it nothing is trained, or the run stops."""
    for key in strictness.counts():
        value = run.given(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and (why := strictness.too_low(key, value)):
            default = run.options[key].unset
            edit = put(**{key: default}) if default else drop(key)
            yield error(key, f"{value:g} is too low", why, edit)


def _is_forgiven(run: Run, value: Any) -> bool:
    """hina_kohya's parser takes a string for a list, and says itself what is wrong with a word."""
    return isinstance(value, (str, list)) and run.optimizer.registered and run.optimizer.hooked


def _used_as_it_is(run: Run) -> str:
    return f"values of a TOML are used as they are ({run.at('read_config_from_file')})"


def _default(option: Option, value: Any) -> Any:
    return option.unset if value is None else value
