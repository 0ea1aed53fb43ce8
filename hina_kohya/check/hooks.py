"""Whether hina_kohya's hooks will act in a run, and how we know."""

import dataclasses as dc
from functools import lru_cache

from hina_kohya import patch
from hina_kohya.check.network import WRAPPERS
from hina_kohya.check.schema import LYCORIS, Schema
from hina_kohya.trainers.call_sites import Outcome, Verdict
from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


@dc.dataclass(frozen=True)
class Hooks:
    """
    installed: something in this run installs them; why: what, or what is missing
    site     : whether the script calls what they wrap, as its source says
    """

    installed: bool
    why: str
    site: Verdict

    @property
    def active(self) -> bool:
        return self.installed and self.site.outcome is not Outcome.CANNOT


def hooks_of(module: str, schema: Schema, script: str, launched: bool) -> Hooks:
    checkout = schema.checkout
    if checkout is None:
        reason = f"no checkout of {schema.trainer.name} is known; add --sd-scripts PATH, or set {schema.trainer.home}"
        site = Verdict(Outcome.NOT_LOOKED_AT, reason)
    else:
        site = _verdict(checkout, script)
    if launched:
        return Hooks(True, "started with hina-kohya launch", site)
    if module in WRAPPERS:
        return Hooks(True, f"network_module = {module}", site)
    if module == LYCORIS and patch.inspect("lycoris").patched:
        return Hooks(True, "LyCORIS is patched", site)
    if checkout is not None and checkout.trainer is SD_SCRIPTS and patch.inspect("sd-scripts", checkout.root).patched:
        return Hooks(True, "sd-scripts is patched", site)
    return Hooks(False, "network_module is not one of ours, nothing is patched; or pass --launched", site)


@lru_cache(maxsize=32)
def _verdict(checkout: Checkout, script: str) -> Verdict:
    return checkout.verdict(script)
