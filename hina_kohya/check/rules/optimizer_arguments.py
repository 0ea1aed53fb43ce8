"""`optimizer_args` that the trainer's parser would refuse, or read as something else than was meant."""

from collections.abc import Iterator

from hina_kohya.check.edit import Edit, argument, put, reword
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.optimizer import OPTION, strictly
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run


@rule
def argument_refused(run: Run) -> Iterator[Finding]:
    for word, why, correction in run.optimizer.refused:
        if not word:  # by the forgiving parser, whose message says it all
            yield error(OPTION, why, "the optimizer's own arguments, read by hina_kohya")
        else:
            what = f"{word!r} cannot be read ({why.partition(' on line')[0]})"
            yield error(
                OPTION,
                what,
                f"measured; {run.at('get_optimizer')}: split at one =, then a Python literal",
                reword(OPTION, (word, correction)),
            )


@rule
def schedule_argument_refused(run: Run) -> Iterator[Finding]:
    """The schedule's arguments go through the same parser."""
    words = run.words("lr_scheduler_args")
    for word, why, correction in strictly(words)[1]:
        fix = reword("lr_scheduler_args", (word, correction))
        what = f"{word!r} cannot be read ({why.partition(' on line')[0]})"
        evidence = f"{run.at('get_scheduler_fix')}: split at one =, then a Python literal"
        yield error("lr_scheduler_args", what, evidence, fix)


@rule
def argument_twice(run: Run) -> Iterator[Finding]:
    for name in run.optimizer.repeats:
        first = next(word for word in run.optimizer.words if word.startswith(f"{name}="))
        what = f"{name} is given twice; the last one counts"
        yield warning(OPTION, what, f"measured ({run.at('get_optimizer')})", reword(OPTION, (first, "")))


@rule
def lr_in_arguments(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    if "lr" in optimizer.arguments:
        what = "lr comes from learning_rate; a second one stops the run"
        edit: Edit = argument(OPTION, optimizer.words, "lr")
        rate = optimizer.arguments["lr"]
        if run.given("learning_rate") is None and isinstance(rate, (int, float)):
            edit += put(learning_rate=float(rate))
        yield error(OPTION, what, "measured: TypeError, multiple values", edit)
    if "params" in optimizer.arguments:
        what = "params is what the trainer gives the optimizer"
        edit = argument(OPTION, optimizer.words, "params")
        yield error(OPTION, what, "measured: TypeError, multiple values", edit)


@rule
def tuple_by_comma(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    for name, value in optimizer.arguments.items():
        if isinstance(value, tuple) and len(value) == 1 and not (optimizer.registered and optimizer.hooked):
            what = f"the comma after {name}={value[0]!r} makes a tuple of it"
            word = next(word for word in optimizer.words if word.startswith(f"{name}="))
            fix = reword(OPTION, (word, f"{name}={value[0]!r}"))
            yield error(OPTION, what, "measured; bmaltais/kohya_ss #3052", fix)
