"""What the optimizers of this family accept: defaults, bounds and meaning. `resolving` turns it into a chain."""

import dataclasses as dc
import math
from typing import Any

from hina_kohya.core import registry
from hina_kohya.core.hyper import check, hyper

LEVELS = 253  # of the learning-rate mask, which keeps a level in a byte


@dc.dataclass(frozen=True)
class Settings:
    """Arguments that every optimizer of the family accepts."""

    targets = dict[str, tuple[str, ...]]()  # where an argument sets other options than in `resolving`

    lr: float = hyper(1e-3, "[0, inf)", doc="learning rate")
    betas: tuple[float, ...] = hyper((0.9, 0.999), doc="decay of the averages of gradient and squared gradient")
    eps: float | tuple[float, ...] = hyper(1e-8, "(0, inf)", doc="added to the root of the second moment")
    weight_decay: float = hyper(1e-2, "[0, inf)", doc="decoupled weight decay, for roles that decay")
    state: str = hyper("8bit", doc='how moments are kept: "8bit", "bf16" or "fp32"')
    decay_roles: tuple[str, ...] = hyper((), doc='roles that decay besides the factors, or "all"')
    use_spd: bool = hyper(False, doc="selective projection decay, instead of weight decay")
    spd_lambda: float = hyper(0.06, "[0, inf)", doc="strength of SPD")
    use_cautious: bool = hyper(True, doc="drop update entries that disagree with the gradient")
    use_orthogonal_grad: bool = hyper(False, doc="OrthoGrad: remove the gradient's part along the parameter")
    use_adopt_stability: bool = hyper(False, doc="ADOPT instead of Adam")
    use_muon: bool = hyper(False, doc="Muon for matrices: steps by the orthogonalised momentum")
    use_normuon: bool = hyper(True, doc="NorMuon: even out the neurons' shares of Muon's step")
    use_grams: bool = hyper(False, doc="magnitude of the update, sign of the gradient")
    use_agr: bool = hyper(False, doc="adaptive gradient regularization")
    use_tam: bool = hyper(False, doc="torque-aware momentum")
    tam_beta: float = hyper(0.9, "[0, 1)", doc="decay of TAM's average of cosines")
    tam_paper_form: bool = hyper(False, doc="AdaTAM as in the paper: steps are 10 to 45 times larger at the same lr")
    use_lora_muon: bool = hyper(False, doc="LoRA-Muon for pairs: Muon's step of W = B A; no Cautious for them")
    use_lora_rite: bool = hyper(False, doc="LoRA-RITE for pairs, instead of Adam")
    use_auto_lr: bool = hyper(False, doc="find the learning rate, as Prodigy does: give lr=1, schedules multiply it")
    d0: float = hyper(3e-4, "(0, inf)", doc="use_auto_lr: the rate at the start, and the least")
    d_coef: float = hyper(1.0, "(0, inf)", doc="use_auto_lr: what the rate that is found is multiplied by")
    rank_free_lr: bool = hyper(False, doc="keep what the learning rate means when rank or alpha change, from 8 and 8")
    lora_scale: float | None = hyper(None, "(0, inf)", doc="alpha / rank, where no trainer's hook says it")
    use_alora: bool = hyper(False, doc="LoRA+: a larger learning rate for the factor that starts at zero")
    alora_ratio: float = hyper(16.0, "(0, inf)", doc="its learning rate over its partner's")
    use_allora_rows: bool = hyper(False, doc="ALLoRA: smaller steps for rows of B A that are already large")
    use_kronecker_rms: bool = hyper(False, doc="LoKr: divide each factor's step by the size of the others")
    use_cautious_weight_decay: bool = hyper(False, doc="decay only what the update does not move away from zero")
    dynamic_weight_decay: bool = hyper(False, doc="let weight decay fade")
    wd_transition_steps: float = hyper(1000, "(0, inf)", doc="steps, or fraction of the run, before it fades")
    wd_decay_factor: float = hyper(0.7, "(0, 1]", doc="what is left after each further transition")
    wd_min_ratio: float = hyper(0.1, "[0, 1]", doc="floor of the fade")
    preset: str | None = hyper(None, doc="name of a file in configs/presets, or a path; arguments given win over it")
    compile: bool = hyper(False, doc="compile the chain with torch.compile")
    override_hyperparameters: bool = hyper(False, doc="on resume, keep these settings instead of the checkpoint's")

    def __post_init__(self):
        check(self)
        registry.build("adam", **self.moment_options("adam", ("betas", "eps")))

    def moment_options(self, technique: str, given: Any) -> dict[str, Any]:
        """Betas and epsilon of a MOMENT technique: Adam's are ours, any other has its own unless ``given``."""
        options: dict[str, Any] = {}
        if technique in ("muon", "lora_muon"):
            return {"beta": numbers("betas", self.betas, (0.9, 0.999))[0]} if "betas" in given else {}
        if "betas" in given or technique == "adam":
            beta1, beta2 = numbers("betas", self.betas, (0.9, 0.999))
            options.update(beta1=beta1, beta2=beta2)
        if "eps" in given or technique == "adam":
            options.update(eps=self.eps)
        return options

    def technique_options(self, given: Any) -> dict[str, dict[str, Any]]:
        """Options that no single argument says, by technique."""
        return {}


def numbers(name: str, value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """``value`` as a tuple as long as ``default``; lists are forgiven, since TOML knows no tuples."""
    if not isinstance(value, (tuple, list)) or len(value) != len(default):
        count = {2: "two", 3: "three"}[len(default)]
        raise ValueError(f"{name} = {value!r} must be {count} numbers, such as {default}")
    return tuple(value)


@dc.dataclass(frozen=True)
class MaskSettings(Settings):
    """Arguments of the automagic mask, which are learning rates: the mask itself is relative to the group's."""

    use_lr_mask: bool = hyper(False, doc="automagic: raise an element's lr while its gradient keeps its sign")
    min_lr: float | None = hyper(None, "(0, inf)", doc="least lr the mask gives where the group has lr; None: lr / 10")
    max_lr: float | None = hyper(None, "(0, inf)", doc="largest lr it gives there; None: 10 lr")
    lr_bump: float | None = hyper(
        None, "(0, inf)", doc=f"(max_lr - min_lr) / lr_bump steps, at most {LEVELS}, cross the range; None: 5 % a step"
    )
    warmup_steps: float = hyper(math.inf, "(0, inf]", doc="the mask moves during so many steps, then stays")

    def technique_options(self, given: Any) -> dict[str, dict[str, Any]]:
        rates = (self.min_lr, self.max_lr, self.lr_bump)
        if not self.use_lr_mask or all(value is None for value in rates):
            return super().technique_options(given)
        low, high = (self.min_lr or self.lr / 10), (self.max_lr or self.lr * 10)
        if not 0 < low <= self.lr <= high:
            raise ValueError(
                f"the mask's range min_lr = {low:g} to max_lr = {high:g} must contain lr = {self.lr:g}; "
                "leave min_lr and max_lr out for a tenth and ten times of lr"
            )
        mask: dict[str, Any] = {"low": low / self.lr, "high": high / self.lr}
        if self.lr_bump is not None and low < high:
            steps = min(LEVELS, max(1.0, (high - low) / self.lr_bump))
            mask["bump"] = math.expm1(math.log(high / low) / steps)
        return {**super().technique_options(given), "automagic_mask": mask}
