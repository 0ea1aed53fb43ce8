"""Combinations that are known to stop, or to train nothing."""

from collections.abc import Iterator

from hina_kohya.check.edit import Edit, argument
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.network import OPTION
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run
from hina_kohya.check.schema import TRAINER
from hina_kohya.check.trainer import SD3, SDXL
from hina_kohya.patch import targets
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_UNETS = (TRAINER, SDXL)
# module of sd-scripts -> the scripts whose models have its targets
_TARGETS = {
    **dict.fromkeys(("networks.lora", "networks.lora_fa", "networks.dylora", "networks.oft"), _UNETS),
    **dict.fromkeys(("networks.lora_flux", "networks.oft_flux"), ("flux_train_network.py",)),
    "networks.lora_sd3": (SD3,),
    "networks.lora_lumina": ("lumina_train_network.py",),
    "networks.lora_hunyuan_image": ("hunyuan_image_train_network.py",),
    "networks.lora_anima": ("anima_train_network.py",),
}
_DROPOUTS = ("dropout", "rank_dropout", "module_dropout")
_BROKEN_ON_CUDA = "4.1.3"


@rule
def network_of_another_model(run: Run) -> Iterator[Finding]:
    scripts = _TARGETS.get(run.network.inner)
    if scripts and run.trainer.certain and run.schema.trainer is SD_SCRIPTS and run.trainer.script not in scripts:
        what = (
            f"{run.network.inner} finds nothing to train in the model of {run.trainer.script}; it is for {scripts[0]}"
        )
        evidence = "its source: the classes that it looks for; run with five such pairs"
        # Of one pair the text encoders are trained all the same.
        goes_on = run.network.inner == "networks.lora_flux" and run.trainer.script == SDXL and run.trains_text_encoder
        level = warning if goes_on else error
        yield level("network_module", what, evidence, advice="name the network for this model")


@rule
def everything_dropped(run: Run) -> Iterator[Finding]:
    """With a dropout of 1 every module is left out in every step."""
    for name in _DROPOUTS:
        if _number(run, name) >= 1:
            what = f"{name}={run.network.arguments[name]} leaves everything out in every step, so nothing is trained"
            yield error(OPTION, what, "measured: the file holds the weights as they began", _without(run, name))


@rule
def rank_dropout_on_cuda(run: Run) -> Iterator[Finding]:
    network = run.network
    if not network.is_lycoris or network.algorithm not in ("lokr", "loha") or not _number(run, "rank_dropout"):
        return
    target = targets.find_lycoris()
    if target is not None and target.version == _BROKEN_ON_CUDA:
        what = f"rank_dropout of {network.algorithm} stops on CUDA with LyCORIS {target.version}"
        yield warning(
            OPTION, what, "LyCORIS #291: its mask is made on the CPU; on a CPU it trains", _without(run, "rank_dropout")
        )


@rule
def flux_layers_split(run: Run) -> Iterator[Finding]:
    if run.network.inner == "networks.lora_flux" and run.network.is_on("split_qkv"):
        what = "networks.lora_flux stops where q, k and v are split (split_qkv)"
        evidence = "measured with 0.11.1: ValueError, too many values to unpack"
        yield error(OPTION, what, evidence, _without(run, "split_qkv"))


@rule
def rank_dropout_of_split_layers(run: Run) -> Iterator[Finding]:
    if run.network.inner.startswith("networks.") and run.network.is_on("split_qkv") and _number(run, "rank_dropout"):
        what = "rank_dropout stops where q, k and v are split (split_qkv)"
        yield error(
            OPTION,
            what,
            "measured with lora_sd3 of 0.11.1: UnboundLocalError; sd-scripts #2272",
            _without(run, "rank_dropout"),
        )


@rule
def dora_bypassed(run: Run) -> Iterator[Finding]:
    network = run.network
    if network.is_lycoris and network.is_on("dora_wd") and network.is_on("bypass_mode"):
        what = "bypass_mode adds outputs, and DoRA has to see the weight: dora_scale is not trained"
        yield warning(
            OPTION, what, "its source: bypass_forward does not look at dora_scale", _without(run, "bypass_mode")
        )


def _number(run: Run, name: str) -> float:
    try:
        return float(run.network.arguments.get(name) or 0)
    except ValueError:
        return 0.0


def _without(run: Run, name: str) -> Edit:
    return argument(OPTION, run.words(OPTION), name)
