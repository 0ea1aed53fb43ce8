"""Options that are accepted and then never read, and some that undo each other."""

from collections.abc import Iterator

from hina_kohya.check.edit import argument, drop, put
from hina_kohya.check.finding import Finding, note, warning
from hina_kohya.check.network import OPTION
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.patch import targets
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# How attention is computed: people give one of them always, and DiT trainers choose themselves.
_HARMLESS = ("sdpa", "xformers", "mem_eff_attn", "tokenizer_cache_dir")
# A value that says the same as none; GUIs write it.
_AS_NONE = {"clip_skip": 1}
_SAID_ELSEWHERE = ("v2",)
# Algorithms that drop outputs only where these are added (bypass_mode) -> the one release that is known to, "" for all
_DROPS_OUTPUTS = {"loha": "", "lokr": "", "lora": "4.1.3", "locon": "4.1.3"}
# Algorithms that no norm is scaled of.
_NO_NORM = ("full", "ia3", "glora", "dylora", "tlora", "adlrns")
# option -> the one without which it is not read
_OF_ANOTHER = {
    "multires_noise_discount": "multires_noise_iterations",
    "noise_offset_random_strength": "noise_offset",
    "ip_noise_gamma_random_strength": "ip_noise_gamma",
}
_V_PREDICTION = ("train_network.py", "sdxl_train_network.py")


@rule
def option_never_read(run: Run) -> Iterator[Finding]:
    """Derived from the trainer's source: no path from `train` reads it."""
    if not run.trainer.certain:
        return
    evidence = f"its source: no path from train in {run.trainer.script} reads it"
    for key in run.schema.unread(run.trainer.script):
        value = run.given(key)
        if not value or key in _SAID_ELSEWHERE or value in (run.options[key].unset, _AS_NONE.get(key)):
            continue
        what = f"{run.trainer.script} never reads it"
        if key in _HARMLESS:
            yield note(key, what)
        else:
            yield warning(key, what, evidence, drop(key))


@rule_of(SD_SCRIPTS)
def read_with_another_only(run: Run) -> Iterator[Finding]:
    unread = run.schema.unread(run.trainer.script)
    for key, other in _OF_ANOTHER.items():
        value = run.given(key)
        if value and value != run.options[key].unset and not run.args[other] and key not in unread:
            yield warning(
                key,
                f"it is read only with {other}",
                f"its source ({at('get_noise_noisy_latents_and_timesteps')})",
                drop(key),
            )


@rule_of(SD_SCRIPTS)
def snr_without_v_prediction(run: Run) -> Iterator[Finding]:
    if run.trainer.script in _V_PREDICTION and run.on("zero_terminal_snr") and not run.on("v_parameterization"):
        what = "it is for v-prediction: the noise that is predicted tells nothing at the last timestep"
        evidence = "Lin et al., arXiv:2305.08891, section 3.2; the option's help says so, too"
        yield warning("zero_terminal_snr", what, evidence, put(zero_terminal_snr=False))


@rule
def dropout_without_effect(run: Run) -> Iterator[Finding]:
    """Where weights are rebuilt, no output of the adapter is there to be dropped. fp8 weights are not rebuilt."""
    network = run.network
    release, target = _DROPS_OUTPUTS.get(network.algorithm), targets.find_lycoris()
    bypassed = network.is_on("bypass_mode") or any(key.startswith("fp8") and run.on(key) for key in run.options)
    if not network.is_lycoris or release is None or bypassed or (release and (not target or target.version != release)):
        return
    what = f"dropout of {network.algorithm} does nothing without bypass_mode=True"
    evidence = "measured with LyCORIS 4.1.3: two passes are the same to the bit"
    if run.args["network_dropout"]:
        yield warning("network_dropout", what, evidence, drop("network_dropout"))
    if "dropout" in network.arguments and not network.is_off("dropout"):
        yield warning(OPTION, what, evidence, argument(OPTION, run.words(OPTION), "dropout"))


@rule_of(SD_SCRIPTS)
def norms_not_scaled(run: Run) -> Iterator[Finding]:
    network = run.network
    if network.is_lycoris and network.algorithm in _NO_NORM and run.args["scale_weight_norms"]:
        what = f"{network.algorithm} has no norm that LyCORIS scales"
        evidence = f"its source: apply_max_norm of the module ({at('NetworkTrainer.train')})"
        yield warning("scale_weight_norms", what, evidence, drop("scale_weight_norms"))


@rule_of(SD_SCRIPTS)
def no_nesterov_in_8_bits(run: Run) -> Iterator[Finding]:
    if run.optimizer.lower == "sgdnesterov8bit":
        what = "sd-scripts makes it a second time without momentum: it is plain SGD with 8-bit state"
        yield warning("optimizer_type", what, f"measured ({at('get_optimizer')})", put(optimizer_type="SGDNesterov"))
