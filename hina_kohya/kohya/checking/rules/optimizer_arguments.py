"""`optimizer_args` that the trainer's parser would refuse, or read as something else than was meant."""

from collections.abc import Iterator

from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.optimizer import OPTION, strictly
from hina_kohya.kohya.checking.reading import relisted, toml_line
from hina_kohya.kohya.checking.rules import rule


@rule
def argument_refused(context: Context) -> Iterator[Finding]:
    for word, why, meant in context.optimizer.refused:
        if not word:  # by the forgiving parser, whose message says it all
            yield error(OPTION, why, "the optimizer's own arguments, read by hina_kohya")
        else:
            what = f"{word!r} cannot be read ({why.partition(' on line')[0]})"
            yield error(
                OPTION,
                what,
                f"measured; {context.at('get_optimizer')}: split at one =, then a Python literal",
                relisted(OPTION, context.optimizer.words, word, meant) if meant else "",
            )


@rule
def schedule_argument_refused(context: Context) -> Iterator[Finding]:
    """The schedule's arguments go through the same parser."""
    words = context.words("lr_scheduler_args")
    for word, why, meant in strictly(words)[1]:
        fix = relisted("lr_scheduler_args", words, word, meant) if meant else ""
        what = f"{word!r} cannot be read ({why.partition(' on line')[0]})"
        evidence = f"{context.at('get_scheduler_fix')}: split at one =, then a Python literal"
        yield error("lr_scheduler_args", what, evidence, fix)


@rule
def argument_twice(context: Context) -> Iterator[Finding]:
    for name in context.optimizer.twice:
        first = next(word for word in context.optimizer.words if word.startswith(f"{name}="))
        what = f"{name} is given twice; the last one counts"
        yield warning(
            OPTION, what, f"measured ({context.at('get_optimizer')})", relisted(OPTION, context.optimizer.words, first)
        )


@rule
def lr_in_arguments(context: Context) -> Iterator[Finding]:
    optimizer = context.optimizer
    if "lr" in optimizer.arguments:
        what = "lr comes from learning_rate; a second one stops the run"
        yield error(
            OPTION, what, "measured: TypeError, multiple values", toml_line("learning_rate", optimizer.arguments["lr"])
        )
    if "params" in optimizer.arguments:
        yield error(OPTION, "params is what the trainer gives the optimizer", "measured: TypeError, multiple values")


@rule
def tuple_by_comma(context: Context) -> Iterator[Finding]:
    optimizer = context.optimizer
    for name, value in optimizer.arguments.items():
        if isinstance(value, tuple) and len(value) == 1 and not (optimizer.registered and optimizer.hooked):
            what = f"the comma after {name}={value[0]!r} makes a tuple of it"
            word = next(word for word in optimizer.words if word.startswith(f"{name}="))
            fix = relisted(OPTION, optimizer.words, word, f"{name}={value[0]!r}")
            yield error(OPTION, what, "measured; bmaltais/kohya_ss #3052", fix)
