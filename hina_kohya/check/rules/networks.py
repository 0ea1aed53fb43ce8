"""`network_args` that the chosen network does not read, or would stop at."""

from collections.abc import Iterator

from hina_kohya.adlrns.adapter import arguments
from hina_kohya.check import values
from hina_kohya.check.edit import Edit, argument, put, reword
from hina_kohya.check.finding import Finding, error, missing, not_looked_at, warning
from hina_kohya.check.network import OPTION
from hina_kohya.check.optimizer import OPTION as OPTIMIZER_ARGS
from hina_kohya.check.rules import rule
from hina_kohya.check.rules.lycoris import SWITCHES
from hina_kohya.check.run import Run
from hina_kohya.check.spelling import alike
from hina_kohya.text import nearest
from hina_kohya.trainers import network_args
from hina_kohya.trainers.call_sites import Outcome
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts import foreign_names

_ADDED = ("dropout",)  # by sd-scripts itself (NetworkTrainer.train)


@rule
def network_word(run: Run) -> Iterator[Finding]:
    for word in run.network.malformed:
        what = f"{word!r} is not name=value"
        fix = reword(OPTION, (word, f"{word}=True"))
        yield error(OPTION, what, f"measured: ValueError ({run.at('NetworkTrainer.train')})", fix)


@rule
def network_argument_twice(run: Run) -> Iterator[Finding]:
    for name in run.network.repeats:
        first = next(word for word in run.words(OPTION) if word.startswith(f"{name}="))
        fix = reword(OPTION, (first, ""))
        yield warning(OPTION, f"{name} is given twice; the last one counts", run.at("NetworkTrainer.train"), fix)


@rule
def network_argument_unread(run: Run) -> Iterator[Finding]:
    """Every network takes **kwargs and looks only for what it knows."""
    network, facts = run.network, run.network.facts
    if facts is None:
        return
    for name in network.arguments:
        if name in (*facts.reads, *facts.taken, *_ADDED, *network_args.OURS, *network_args.RATIOS):
            continue
        if network.is_off(name) and not network.is_adlrns:
            continue
        what = f"{network.inner} does not read {name}, and ignores it"
        evidence = f"its source: create_network gets it in **kwargs; {_how_known(run)}"
        if network.is_adlrns:
            yield error(OPTION, f"adlrns does not know {name}, and stops", "measured: ValueError", _meant(run, name))
        else:
            yield warning(OPTION, what, evidence, _meant(run, name))


@rule
def network_argument_taken(run: Run) -> Iterator[Finding]:
    network, facts = run.network, run.network.facts
    for name in network.arguments if facts else ():
        if facts and name in facts.taken and name not in facts.reads:
            fix = argument(OPTION, run.words(OPTION), name)
            value = values.meant(run.options[name], network.arguments[name]) if name in run.options else None
            if value is not None and name not in run.source.values:
                fix += put(**{name: value})
            what = f"{name} is not one of network_args: the trainer gives it to create_network itself"
            yield error(OPTION, what, f"TypeError, multiple values ({run.at('NetworkTrainer.train')})", fix)


@rule
def hooks_cannot_act(run: Run) -> Iterator[Finding]:
    """Something installs them, and the trainer's source does not call what they wrap."""
    hooks = run.hooks
    if hooks.installed and hooks.site.outcome is Outcome.CANNOT:
        yield error(
            "network_module",
            f"hina_kohya's hooks ({hooks.why}) cannot act here: {hooks.site.why}",
            "its source; names, short optimizer names and options of param groups would do nothing",
            _unwrapped(run),
        )


@rule
def hooks_needed_by_network(run: Run) -> Iterator[Finding]:
    """Our own options in network_args, where nobody would read them."""
    network, facts = run.network, run.network.facts
    if run.hooks.active or facts is None:
        return
    if network.is_adlrns:
        what = f"algo=adlrns needs the hooks, which are not active ({run.hooks.why})"
        yield error(OPTION, what, "measured: KeyError", _wrapped(run))
        return
    for name in network.arguments:
        if name in network_args.OURS or (name in network_args.RATIOS and name not in facts.reads):
            yield warning(
                OPTION,
                f"{name} needs the hooks, which are not active ({run.hooks.why}); {network.inner} ignores it",
                "its source: create_network does not look for it",
                _wrapped(run),
            )


@rule
def loraplus_without_effect(run: Run) -> Iterator[Finding]:
    """Without the hooks, LoRA+ of LyCORIS looks for `lora_up` and finds none in most algorithms."""
    network = run.network
    ratios = [name for name in network.arguments if name in network_args.RATIOS]
    if not network.is_lycoris or run.hooks.active or not ratios or network.facts is None:
        return
    if ratios[0] in network.facts.reads and network.algorithm not in ("lora", "locon", "adlrns"):
        yield warning(
            OPTION,
            f"{ratios[0]} does nothing for {network.algorithm}: LyCORIS looks for lora_up in the names",
            "measured with LyCORIS 3.2 and 4.1.3",
            _wrapped(run),
        )


@rule
def hina_option_refused(run: Run) -> Iterator[Finding]:
    if run.hooks.active:
        try:
            network_args.take(run.network.arguments)
        except UserError as mistake:
            yield error(OPTION, str(mistake).removeprefix(f"{OPTION}: "), "hina_kohya reads it")


@rule
def adlrns_refused(run: Run) -> Iterator[Finding]:
    """Bounds, and what depends on the rank."""
    network = run.network
    if network.module == "hina_kohya.adlrns" and not network.is_adlrns:
        what = f"algo={network.algorithm} is not ADLRNS, which hina_kohya.adlrns is"
        yield error(OPTION, what, "measured: ValueError", put(network_module="hina_kohya.lycoris"))
    if not network.is_adlrns:
        return
    for name in arguments.REFUSED.values():
        if network.is_on(name):
            yield error(
                OPTION,
                f"adlrns has no {name}, and stops",
                "measured: ValueError",
                argument(OPTION, run.words(OPTION), name),
            )
    options, _ = arguments.take(network.arguments)
    try:
        if run.on("dim_from_weights"):
            arguments.Settings(**options)  # the rest follows from the file
        else:
            arguments.settle(options, arguments.rank(run.args["network_dim"], network.arguments.get("conv_dim")))
    except ValueError as mistake:
        yield error(OPTION, str(mistake), "hina_kohya reads it")


@rule
def adlrns_warmup_too_long(run: Run) -> Iterator[Finding]:
    """Until its end all directions act; what was trained after it is what the file will run."""
    if not run.network.is_adlrns or run.args["max_train_epochs"] is not None:
        return
    try:
        settings = arguments.Settings(**arguments.take(run.network.arguments)[0])
    except ValueError:
        return  # said elsewhere
    steps, warmup = run.args["max_train_steps"], settings.warmup
    interval = settings.refresh_every if settings.bins > 1 else 1  # with one bin the choice is at the warm-up's end
    name = "warmup" if warmup >= interval else "refresh_every"
    if warmup and -(-warmup // interval) * interval > 2 * steps / 3:
        values = f"{name} = {getattr(settings, name)} of max_train_steps = {steps}"
        yield warning(
            OPTION,
            f"{values}: directions are chosen too late to be trained",
            "its source: until then all directions act",
            argument(OPTION, run.words(OPTION), name, str(3 * steps // 8 if name == "warmup" else max(1, steps // 32))),
        )


@rule
def adlrns_budget_in_wide_values(run: Run) -> Iterator[Finding]:
    """A size is counted in values of two bytes."""
    if not run.network.is_adlrns or run.args["save_precision"] not in (None, "float"):
        return
    try:
        settings = arguments.Settings(**arguments.take(run.network.arguments)[0])
    except ValueError:
        return  # said elsewhere
    if settings.budget_bytes is not None:
        yield warning(
            "save_precision",
            f"budget = {settings.budget} is a size in fp16 or bf16; saved in float32 the file has twice as much",
            "its source: save_weights keeps float32 without save_precision",
            put(save_precision="fp16"),
        )


@rule
def rank_missing(run: Run) -> Iterator[Finding]:
    network = run.network
    has_rank = "network_dim" in run.source.values
    if not has_rank and run.args["network_dim"] is None and network.inner and not run.on("dim_from_weights"):
        if network.algorithm in ("full", "ia3"):
            return
        what, evidence = "without it the rank is 4", "the source of every network module"
        yield warning("network_dim", what, evidence, put(network_dim=16))


@rule
def network_missing(run: Run) -> Iterator[Finding]:
    network = run.network
    if network.module == "hina_kohya.network" and not network.inner:
        what = "hina_kohya.network wraps another module, and nothing says which"
        yield error(OPTION, what, "hina_kohya reads it", reword(OPTION, ("", "inner=networks.lora")))
    elif network.inner.startswith(("networks.", "lycoris.", "network.", "lora.")) and network.facts is None:
        near = nearest(network.inner.rpartition(".")[2], [name.partition(".")[2] for name in run.schema.networks])
        fix = put(network_module=f"networks.{near[0]}") if near else None
        what = f"there is no {network.inner} in {run.schema.origin}"
        if network.is_lycoris:
            advice = "pip install lycoris-lora"
            yield missing("network_module", "LyCORIS is not installed here", "looked", advice)
        else:
            yield error("network_module", what, "ModuleNotFoundError", fix)
    elif network.inner and network.facts is None:
        why = f"its network_args: {network.inner} is neither the trainer's nor LyCORIS' nor hina_kohya's"
        yield not_looked_at("network_module", why)


def _meant(run: Run, name: str) -> Edit:
    """The argument under the name that the network reads, else without it."""
    network, words = run.network, run.words(OPTION)
    reads = [*(network.facts.reads if network.facts else ()), *network_args.OURS]
    value, removal = network.arguments[name], argument(OPTION, words, name)
    synonym = foreign_names.NETWORK_ARGUMENTS.get(name, "")
    if synonym in reads:
        return removal if synonym in network.arguments else removal + argument(OPTION, words, synonym, value)
    if name in foreign_names.OF_OPTIMIZERS or (run.optimizer.is_hina and name.startswith("use_")):
        return removal + argument(OPTIMIZER_ARGS, run.words(OPTIMIZER_ARGS), name, value)
    if (option := foreign_names.OPTIONS.get(name, name)) in run.options and option not in run.source.values:
        setting = values.meant(run.options[option], value)
        return removal if setting is None else removal + put(**{option: setting})
    near = [each for each in nearest(name, reads)[:1] if alike(name, each) and _takes(each, value)]
    return removal + argument(OPTION, words, near[0], value) if near and near[0] not in network.arguments else removal


def _takes(name: str, value: str) -> bool:
    """Whether a value can be one of an argument: a switch's words are no number's."""
    return (value.lower() in ("true", "false")) == (name in SWITCHES)


def _wrapped(run: Run) -> Edit:
    if run.network.is_lycoris:
        return put(network_module="hina_kohya.lycoris")
    return put(network_module="hina_kohya.network") + reword(OPTION, ("", f"inner={run.network.inner}"))


def _unwrapped(run: Run) -> Edit | None:
    """The line without our wrapper, where there is one."""
    return put(network_module=run.network.inner) if run.network.wrapped else None


def _how_known(run: Run) -> str:
    return "the LyCORIS installed here" if run.network.is_lycoris else run.schema.origin.partition(";")[0]
