"""Values of the wrong type or outside the choices: argparse would refuse them, a TOML lets them through."""

from collections.abc import Iterator
from typing import Any

from hina_kohya.core.hyper import nearest
from hina_kohya.kohya.checking import values
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error
from hina_kohya.kohya.checking.reading import toml_line, toml_value
from hina_kohya.kohya.checking.rules import rule, rule_of
from hina_kohya.kohya.checking.schema import Option
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_WORDS = {
    "flag": "true or false",
    "int": "a whole number",
    "float": "a number",
    "steps": "a number",
    "str": "text in quotes",
}


@rule
def wrong_type(context: Context) -> Iterator[Finding]:
    for key, option in context.options.items():
        if key not in context.reading.values or key in context.reading.typed:
            continue
        value = context.reading.values[key]
        if values.fits(option, value) or (key == "optimizer_args" and _is_forgiven(context, value)):
            continue
        wanted = f"a list of {_WORDS[option.type]}" if option.list else _WORDS[option.type]
        meant = values.meant(option, value)
        what = f"{toml_value(value)} is not {wanted}"
        if option.type == "flag" and isinstance(value, str) and meant is False:
            what += "; as text that is not empty it counts as true"
        yield error(key, what, _evidence(context, option), toml_line(key, _default(option) if meant is None else meant))


@rule_of(SD_SCRIPTS)
def strict_type(context: Context) -> Iterator[Finding]:
    """Numbers that argparse's converters would have changed, and that the dataset's sanitizer refuses."""
    tables = context.schema.datasets
    wanted = tables["dataset_ascendable_schema"] | tables["subset_ascendable_schema"]
    for key, option in context.options.items():
        value = context.reading.values.get(key)
        if wanted.get(key) == "float" == option.type and type(value) is int and key not in context.reading.typed:
            yield error(
                key,
                f"{value} is a whole number, and the dataset wants {float(value)}",
                "measured: voluptuous refuses it (library/config_util.py)",
                toml_line(key, float(value)),
            )


@rule
def outside_choices(context: Context) -> Iterator[Finding]:
    for key, option in context.options.items():
        value = context.given(key)
        if value is None or not option.choices or value in option.choices:
            continue
        near = nearest(str(value), [str(each) for each in option.choices])
        fix = next((each for each in option.choices if str(each) in near), _default(option))
        known = ", ".join(str(each) for each in option.choices if each is not None)
        yield error(
            key,
            f"{toml_value(value)} is none of {known}",
            f"a TOML's choices are not checked ({context.at('read_config_from_file')}); a wrong save_model_as "
            "becomes the file's ending",
            toml_line(key, fix),
        )


@rule
def steps_as_fraction(context: Context) -> Iterator[Finding]:
    for key in ("lr_warmup_steps", "lr_decay_steps"):
        value = context.given(key)
        if isinstance(value, float) and value >= 1:
            yield error(
                key,
                f"{value} has a decimal point, so it is taken for {value:g} times the whole run",
                f"measured: 100.0 in a run of 1600 steps makes a warm-up of 160000 ({context.at('get_scheduler_fix')})",
                toml_line(key, int(value)),
            )


def _is_forgiven(context: Context, value: Any) -> bool:
    """hina_kohya's parser takes a string for a list, and says itself what is wrong with a word."""
    return isinstance(value, (str, list)) and context.optimizer.registered and context.optimizer.hooked


def _evidence(context: Context, option: Option) -> str:
    seen = {
        "resolution": f"measured: 'int' object has no attribute 'split' ({at('prepare_dataset_args')})",
        "learning_rate": "measured: '<=' not supported between 'float' and 'str'",
        "network_dim": "measured: empty() wants whole numbers",
        "network_args": f"measured: a string is read letter by letter ({context.at('NetworkTrainer.train')})",
        "optimizer_args": f"measured: a string is read letter by letter ({context.at('get_optimizer')})",
    }
    return seen.get(option.name, f"values of a TOML are used as they are ({context.at('read_config_from_file')})")


def _default(option: Option) -> Any:
    return (
        {"flag": True, "int": 1, "float": 1.0, "steps": 0, "str": ""}[option.type]
        if option.unset is None
        else option.unset
    )
