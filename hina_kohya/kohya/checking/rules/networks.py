"""`network_args` that the chosen network does not read, or would stop at."""

from collections.abc import Iterator

from hina_kohya.core.hyper import nearest
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.network import OPTION, adlrns_arguments
from hina_kohya.kohya.checking.reading import relisted, toml_line
from hina_kohya.kohya.checking.rules import rule
from hina_kohya.trainers import network_args
from hina_kohya.trainers.call_sites import Outcome
from hina_kohya.trainers.errors import UserError

OURS = ("weight_decay", "wd_roles", "wd_exclude")
_ADDED = ("dropout",)  # by sd-scripts itself (NetworkTrainer.train)


@rule
def network_word(context: Context) -> Iterator[Finding]:
    for word in context.network.malformed:
        what = f"{word!r} is not name=value"
        fix = relisted(OPTION, context.words(OPTION), word, f"{word}=true")
        yield error(OPTION, what, f"measured: ValueError ({context.at('NetworkTrainer.train')})", fix)


@rule
def network_argument_twice(context: Context) -> Iterator[Finding]:
    for name in context.network.twice:
        first = next(word for word in context.words(OPTION) if word.startswith(f"{name}="))
        fix = relisted(OPTION, context.words(OPTION), first)
        yield warning(OPTION, f"{name} is given twice; the last one counts", context.at("NetworkTrainer.train"), fix)


@rule
def network_argument_unread(context: Context) -> Iterator[Finding]:
    """Every network takes **kwargs and looks only for what it knows."""
    network, facts = context.network, context.network.facts
    if facts is None:
        return
    for name in network.arguments:
        if name in (*facts.reads, *facts.taken, *_ADDED, *OURS, *network_args.RATIOS):
            continue
        near = nearest(name, [*facts.reads, *OURS])[:1]
        fix = _line(context, name, f"{near[0]}={network.arguments[name]}" if near else "")
        what = f"{network.inner} does not read {name}, and ignores it"
        how = f"its source: create_network gets it in **kwargs; {_how_known(context)}"
        if network.is_adlrns:
            what, how = f"adlrns does not know {name}, and stops", "measured: ValueError"
        yield error(OPTION, what, how, fix)


@rule
def network_argument_taken(context: Context) -> Iterator[Finding]:
    network, facts = context.network, context.network.facts
    for name in network.arguments if facts else ():
        if facts and name in facts.taken and name not in facts.reads:
            key = name if name in context.options else OPTION
            fix = f"{name} = {network.arguments[name]}" if key == name else _line(context, name)
            what = f"{name} is not one of network_args: the trainer gives it to create_network itself"
            yield error(OPTION, what, f"TypeError, multiple values ({context.at('NetworkTrainer.train')})", fix)


@rule
def hooks_cannot_act(context: Context) -> Iterator[Finding]:
    """Something installs them, and the trainer's source does not call what they wrap."""
    hooks = context.hooks
    if hooks.installed and hooks.site.outcome is Outcome.CANNOT:
        yield error(
            "network_module",
            f"hina_kohya's hooks ({hooks.why}) cannot act here: {hooks.site.why}",
            "its source; names, short optimizer names and options of param groups would do nothing",
            _unwrapped(context),
        )


@rule
def hooks_needed_by_network(context: Context) -> Iterator[Finding]:
    """Our own options in network_args, where nobody would read them."""
    network, facts = context.network, context.network.facts
    if context.hooks.active or facts is None:
        return
    if network.is_adlrns:
        what = f"algo=adlrns needs the hooks, which are not active ({context.hooks.why})"
        yield error(OPTION, what, "measured: KeyError", _wrapped(context))
        return
    for name in network.arguments:
        if name in OURS or (name in network_args.RATIOS and name not in facts.reads):
            yield error(
                OPTION,
                f"{name} needs the hooks, which are not active ({context.hooks.why}); {network.inner} ignores it",
                "its source: create_network does not look for it",
                _wrapped(context),
            )


@rule
def loraplus_without_effect(context: Context) -> Iterator[Finding]:
    """Without the hooks, LoRA+ of LyCORIS looks for `lora_up` and finds none in most algorithms."""
    network = context.network
    given = [name for name in network.arguments if name in network_args.RATIOS]
    if not network.is_lycoris or context.hooks.active or not given or network.facts is None:
        return
    if given[0] in network.facts.reads and network.algorithm not in ("lora", "locon", "adlrns"):
        yield error(
            OPTION,
            f"{given[0]} does nothing for {network.algorithm}: LyCORIS looks for lora_up in the names",
            "measured with LyCORIS 3.2 and 4.1.3",
            _wrapped(context),
        )


@rule
def hina_option_refused(context: Context) -> Iterator[Finding]:
    if context.hooks.active:
        try:
            network_args.take(context.network.arguments)
        except UserError as mistake:
            yield error(OPTION, str(mistake).removeprefix(f"{OPTION}: "), "hina_kohya reads it")


@rule
def adlrns_refused(context: Context) -> Iterator[Finding]:
    """Bounds, and what depends on the rank."""
    network, arguments = context.network, adlrns_arguments()
    if network.module == "hina_kohya.adlrns" and not network.is_adlrns:
        what = f"algo={network.algorithm} is not ADLRNS, which hina_kohya.adlrns is"
        yield error(OPTION, what, "measured: ValueError", 'network_module = "hina_kohya.lycoris"')
    if not network.is_adlrns:
        return
    for name in arguments.REFUSED.values():
        if network.is_on(name):
            yield error(OPTION, f"adlrns has no {name}, and stops", "measured: ValueError", _line(context, name))
    given, _ = arguments.take(network.arguments)
    try:
        if context.on("dim_from_weights"):
            arguments.Settings(**given)  # the rest follows from the file
        else:
            arguments.settle(given, arguments.rank(context.args["network_dim"], network.arguments.get("conv_dim")))
    except ValueError as mistake:
        yield error(OPTION, str(mistake), "hina_kohya reads it")


@rule
def adlrns_warmup_too_long(context: Context) -> Iterator[Finding]:
    """Until its end all directions act; what was trained after it is what the file will run."""
    if not context.network.is_adlrns or context.args["max_train_epochs"] is not None:
        return
    arguments = adlrns_arguments()
    try:
        settings = arguments.Settings(**arguments.take(context.network.arguments)[0])
    except ValueError:
        return  # said elsewhere
    steps, warmup, every = context.args["max_train_steps"], settings.warmup, settings.refresh_every
    name = "warmup" if warmup >= every else "refresh_every"
    if warmup and -(-warmup // every) * every > 2 * steps / 3:
        values = f"{name} = {getattr(settings, name)} of max_train_steps = {steps}"
        yield warning(
            OPTION,
            f"{values}: directions are chosen too late to be trained",
            "its source: until then all directions act",
            _line(context, name, f"{name}={3 * steps // 8 if name == 'warmup' else max(1, steps // 32)}"),
        )


@rule
def rank_missing(context: Context) -> Iterator[Finding]:
    network = context.network
    if context.args["network_dim"] is None and network.inner and not context.on("dim_from_weights"):
        if network.algorithm in ("full", "ia3"):
            return
        yield warning(
            "network_dim", "without it the rank is 4", "the source of every network module", "network_dim = 16"
        )


@rule
def network_missing(context: Context) -> Iterator[Finding]:
    network = context.network
    if network.module == "hina_kohya.network" and not network.inner:
        fix = relisted(OPTION, ["inner=networks.lora", *context.words(OPTION)], "")
        yield error(
            OPTION, "hina_kohya.network wraps another module, and nothing says which", "hina_kohya reads it", fix
        )
    elif network.inner.startswith(("networks.", "lycoris.")) and network.facts is None:
        near = nearest(network.inner.rpartition(".")[2], [name.partition(".")[2] for name in context.schema.networks])
        fix = toml_line("network_module", f"networks.{near[0]}") if near else ""
        yield error(
            "network_module", f"there is no {network.inner} in {context.schema.origin}", "ModuleNotFoundError", fix
        )


def _line(context: Context, name: str, new: str = "") -> str:
    words = context.words(OPTION)
    old = next((word for word in words if word.startswith(f"{name}=")), "")
    return relisted(OPTION, words, old, new)


def _wrapped(context: Context) -> str:
    inner = context.network.inner
    if context.network.is_lycoris:
        return 'network_module = "hina_kohya.lycoris"'
    words = relisted(OPTION, [f"inner={inner}", *context.words(OPTION)], "")
    return f'network_module = "hina_kohya.network", and {words}'


def _unwrapped(context: Context) -> str:
    """The line without our wrapper, where there is one."""
    return toml_line("network_module", context.network.inner) if context.network.wrapped else ""


def _how_known(context: Context) -> str:
    return "the LyCORIS installed here" if context.network.is_lycoris else context.schema.origin.partition(";")[0]
