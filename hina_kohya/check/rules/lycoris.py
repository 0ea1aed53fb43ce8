"""What LyCORIS does with network_args, where that is not what one would think. Read and run: 3.0.0, 3.4.0, 4.1.3."""

from collections.abc import Iterator
from pathlib import Path

from hina_kohya.adlrns.adapter import arguments
from hina_kohya.check.edit import Edit, argument, put
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.network import OPTION
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.check.schema import TRAINER
from hina_kohya.patch import targets
from hina_kohya.text import nearest
from hina_kohya.trainers import lycoris_presets

# The same in every release from 3.0.0 to 4.1.3; whether they make adapters for convolutions.
PRESETS = {
    "full": True, "full-lin": False, "attn-mlp": False, "attn-only": False, "unet-only": True,
    "unet-transformer-only": False, "unet-convblock-only": True, "ia3": False,
}  # fmt: skip
_TWICE = "duplicated lora name: lora_unet_time_embedding_linear_1"
_TWICE_ON_SD1 = ("full", "full-lin", "unet-only")
_PRODUCTS = ("lora", "locon", "loha", "lokr", "glora")
_DECOMPOSED = ("lora", "locon", "loha", "lokr")
# argument -> the algorithms that look at it; a test compares this with the LyCORIS installed
READERS = {
    **dict.fromkeys(("factor", "full_matrix", "decompose_both", "unbalanced_factorization"), ("lokr",)),
    **dict.fromkeys(("dora_wd", "wd_on_output"), _DECOMPOSED),
    "rs_lora": (*_PRODUCTS, "adlrns"),
    **dict.fromkeys(("use_scalar", "use_tucker"), _PRODUCTS),
    "block_size": ("dylora",),
    **dict.fromkeys(("constraint", "rescaled"), ("diag-oft", "boft")),
}
SWITCHES = (
    "use_scalar", "train_norm", "rescaled", "dora_wd", "wd_on_output", "full_matrix", "bypass_mode", "rs_lora",
    "unbalanced_factorization", "train_t5xxl", "train_llm_adapter", "use_tucker",
)  # fmt: skip
_NO = ("0", "no", "off", "none")


@rule
def algorithm_unknown(run: Run) -> Iterator[Finding]:
    network = run.network
    if network.is_lycoris and network.facts and network.algorithm not in network.facts.algorithms:
        known = network.facts.algorithms
        near = nearest(network.algorithm, known)[:1] or ["lora"]
        what = f"there is no algorithm {network.algorithm}; known: {', '.join(known)}"
        yield error(OPTION, what, "measured: KeyError", _changed(run, "algo", near[0]))


@rule
def preset_unknown(run: Run) -> Iterator[Finding]:
    preset = run.network.arguments.get("preset")
    if not run.network.is_lycoris or preset is None or preset in PRESETS or Path(preset).is_file() or "<" in preset:
        return
    if run.hooks.active and preset in lycoris_presets.names():
        return
    near = nearest(preset, PRESETS)[:1] or ["attn-mlp"]
    what = f"preset={preset} is neither a file nor one of {', '.join(PRESETS)}"
    yield error(OPTION, what, "measured: AssertionError", _changed(run, "preset", near[0]))


@rule
def preset_fails_on_sd1(run: Run) -> Iterator[Finding]:
    """LyCORIS 4 wraps the time embedding of SD 1.x and 2.x twice: by the class of the module, and by its name."""
    preset = run.network.arguments.get("preset", "full")
    if preset in _TWICE_ON_SD1 and not run.on("dim_from_weights") and (version := _fails_on_sd1(run)):
        default = "" if "preset" in run.network.arguments else " (the default)"
        yield (error if run.trainer.certain else warning)(
            OPTION,
            f"preset={preset}{default} stops on SD 1.x and 2.x: {_TWICE}",
            f"measured with LyCORIS 4.0.0 to 4.1.3 (3.x and SDXL are fine); installed: {version}",
            _changed(run, "preset", "attn-mlp"),
        )


@rule
def dim_from_weights_fails_on_sd1(run: Run) -> Iterator[Finding]:
    """It makes the network with LyCORIS's default preset, whatever is given."""
    if run.on("dim_from_weights") and (version := _fails_on_sd1(run)):
        yield (error if run.trainer.certain else warning)(
            "dim_from_weights",
            f"it stops on SD 1.x and 2.x: {_TWICE}",
            f"measured with LyCORIS 4.1.3; installed: {version}",
            put(dim_from_weights=False),
        )


def _fails_on_sd1(run: Run) -> str | None:
    """The installed version of LyCORIS, if it is one that does, and the model may be one."""
    target = targets.find_lycoris() if run.network.is_lycoris else None
    if target is None or run.trainer.script != TRAINER or int((target.version or "0").partition(".")[0]) < 4:
        return None
    return target.version


@rule
def argument_of_another_algorithm(run: Run) -> Iterator[Finding]:
    network = run.network
    if not network.is_lycoris or network.arguments.get("preset", "full") not in PRESETS:
        return  # a preset of one's own may give each module an algorithm of its own
    refused = arguments.REFUSED.values() if network.is_adlrns else ()  # which is an error, and said elsewhere
    for name, readers in READERS.items():
        if name not in network.arguments or network.is_off(name):
            continue
        if network.algorithm not in readers and name not in refused:
            yield warning(
                OPTION,
                f"{name} does nothing for {network.algorithm}; it is for {', '.join(readers)}",
                "its source: the module takes it and does not look at it",
                _changed(run, name),
            )


@rule
def switch_stays_on(run: Run) -> Iterator[Finding]:
    """LyCORIS takes every text but `false` for true, and for decompose_both any text at all."""
    for name, text in run.network.arguments.items() if run.network.is_lycoris else ():
        if name in SWITCHES and text.lower() in _NO:
            what = f"{name}={text} turns it on: only the word false is off"
            yield warning(OPTION, what, "its source: str_bool in lycoris/utils", _changed(run, name, "false"))
        elif name == "decompose_both" and text.lower() in (*_NO, "false"):
            what = f"decompose_both={text} turns it on: any text does"
            yield warning(OPTION, what, "measured with LyCORIS 3.0.0 and 4.1.3: w1 is decomposed", _changed(run, name))


@rule
def dora_on_output(run: Run) -> Iterator[Finding]:
    network = run.network
    if not network.is_lycoris or network.algorithm not in ("loha", "lokr") or not network.is_on("dora_wd"):
        return
    if (
        network.facts
        and "wd_on_output" in network.facts.reads
        and network.arguments.get("wd_on_output", "").lower() != "false"
    ):
        yield warning(
            OPTION,
            f"{network.algorithm} with dora_wd normalises the output side (wd_on_output, on by default), and programs "
            "that use the file may not: they show colored noise",
            "its author's advice, confirmed by the reporter: LyCORIS #246",
            _changed(run, "wd_on_output", "false"),
        )


@rule
def convolutions_left_out(run: Run) -> Iterator[Finding]:
    network = run.network
    preset = network.arguments.get("preset", "full")
    given = [name for name in ("conv_dim", "conv_alpha") if name in network.arguments]
    if network.is_lycoris and given and PRESETS.get(preset, True) is False:
        what = f"{given[0]} does nothing: preset={preset} leaves convolutions out"
        yield warning(OPTION, what, "its source: enable_conv of the preset", _changed(run, given[0]))


def _changed(run: Run, name: str, value: str = "") -> Edit:
    """network_args with one argument set, added, or taken out."""
    return argument(OPTION, run.words(OPTION), name, value)
