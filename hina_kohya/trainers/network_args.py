"""What `--network_args` may say to the optimizer's param groups, read out of a network's keyword arguments."""

import dataclasses as dc
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from hina_kohya.loras import power_profile
from hina_kohya.parameters.members import ROLE_NAMES
from hina_kohya.text import did_you_mean
from hina_kohya.trainers.errors import UserError

DEFAULT = "default"
EVERY = 10  # steps
LOG_EVERY, KEEP_BEST, STOP_AFTER, EMA = "log_every", "keep_best", "stop_after", "ema"
CALIBRATE_STEPS = "calibrate_steps"
HELD_OUT, HELD_OUT_EVERY = "held_out", "held_out_every"
VALIDATE_EVERY = 100  # steps
OURS = (
    "weight_decay", "wd_roles", "wd_exclude", LOG_EVERY, KEEP_BEST, STOP_AFTER, HELD_OUT, HELD_OUT_EVERY, EMA,
    CALIBRATE_STEPS,
)  # fmt: skip
RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


@dc.dataclass(frozen=True)
class NetworkOptions:
    """Options of the param groups; without any, groups stay as the network made them.

    weight_decay: decay of the roles that decay; the others get 0. None: the optimizer's own, for those that decay
    wd_roles    : patterns of the role names that decay; "default" stands for factors and whole weights
    wd_exclude  : patterns of parameter names that do not decay
    loraplus_*  : LoRA+ ratio for whatever starts at zero, in any algorithm; the specific one wins over the general
    ema, calibrate_steps: not of the groups: the width of the average that is kept, None for no average; the last steps
                  of the run that the metric of its adapter is gathered in
    """

    weight_decay: float | None = None
    wd_roles: tuple[str, ...] = ()
    wd_exclude: tuple[str, ...] = ()
    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    ema: float | None = None
    calibrate_steps: int = 0

    @property
    def splits_decay(self) -> bool:
        return self.weight_decay is not None or bool(self.wd_roles or self.wd_exclude)

    @property
    def splits_lr(self) -> bool:
        return any(getattr(self, name) is not None for name in RATIOS)

    def ratio(self, parameter_name: str) -> float | None:
        """The LoRA+ ratio of a parameter: text encoders are named lora_te..., the rest is the U-Net or transformer."""
        text_encoder = parameter_name.startswith("lora_te")
        specific = self.loraplus_text_encoder_lr_ratio if text_encoder else self.loraplus_unet_lr_ratio
        return specific or self.loraplus_lr_ratio


@dc.dataclass(frozen=True)
class BestOptions:
    """Options about the held-out loss; false where there are none.

    keep_best : whether the adapter of its lowest value is saved
    stop_after: validations without a lower one after which the run ends; 0: it does not
    held_out  : file of a dataset that is not trained on, for a trainer that has no validation
    every     : steps from one of those validations to the next
    """

    keep_best: bool = False
    stop_after: int = 0
    held_out: str = ""
    every: int = VALIDATE_EVERY

    def __bool__(self) -> bool:
        return self.keep_best or self.stop_after > 0 or bool(self.held_out)

    def __str__(self) -> str:
        words = [f"{KEEP_BEST}=true"] * self.keep_best + [f"{STOP_AFTER}={self.stop_after}"] * bool(self.stop_after)
        return " ".join([*words, *[f"{HELD_OUT}={self.held_out}"] * bool(self.held_out)])


def take(kwargs: Mapping[str, Any]) -> tuple[NetworkOptions, dict[str, Any]]:
    """The options, and what is left for the network (which reads the LoRA+ ratios, too). Raises UserError."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    # Read again where they act; what is wrong is said before.
    _steps(LOG_EVERY, given.get(LOG_EVERY), EVERY)
    _best(given)
    options = NetworkOptions(
        weight_decay=_number("weight_decay", given.get("weight_decay"), least=0.0),
        wd_roles=_role_patterns(given.get("wd_roles")),
        wd_exclude=_words(given.get("wd_exclude")),
        **{name: _number(name, given.get(name), least=math.ulp(0.0)) for name in RATIOS},
        ema=_width(given.get(EMA)),
        calibrate_steps=_steps(CALIBRATE_STEPS, given.get(CALIBRATE_STEPS, 0), 64),
    )
    return options, {name: value for name, value in kwargs.items() if name not in OURS}


def log_every(words: Sequence[str] | None) -> int:
    """Steps from one measurement to the next, by a trainer's `--network_args`; 0: none. Raises UserError."""
    return _steps(LOG_EVERY, _given(words).get(LOG_EVERY), EVERY)


def best_options(words: Sequence[str] | None) -> BestOptions:
    """By a trainer's `--network_args`. Raises UserError."""
    return _best(_given(words))


def _given(words: Sequence[str] | None) -> dict[str, str]:
    """name -> value; the last of a name counts."""
    return {name: value for name, _, value in (str(word).partition("=") for word in words or ())}


def _steps(name: str, value: Any, usual: int) -> int:
    text = str(usual if value is None else value).strip()
    if not text.isdecimal():
        what = f"network_args: {name}={value!r} must be a whole number of steps, at least 0"
        raise UserError(f"{what}; write {name}={usual}")
    return int(text)


def _best(given: Mapping[str, Any]) -> BestOptions:
    keep, after = (str(given.get(name, default)).strip() for name, default in ((KEEP_BEST, False), (STOP_AFTER, 0)))
    if keep.lower() not in ("true", "false"):
        raise UserError(f"network_args: {KEEP_BEST}={keep!r} must be true or false; write {KEEP_BEST}=true")
    if not after.isdecimal():
        what = f"network_args: {STOP_AFTER}={after!r} must be a whole number of validations, at least 1, or 0: never"
        raise UserError(f"{what}; write {STOP_AFTER}=5")
    every = str(given.get(HELD_OUT_EVERY, VALIDATE_EVERY)).strip()
    if not every.isdecimal() or not int(every):
        what = f"network_args: {HELD_OUT_EVERY}={every!r} must be a whole number of steps, at least 1"
        raise UserError(f"{what}; write {HELD_OUT_EVERY}={VALIDATE_EVERY}")
    return BestOptions(keep.lower() == "true", int(after), str(given.get(HELD_OUT, "")).strip(), int(every))


def _number(name: str, value: Any, least: float) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (least <= number < math.inf):
        bound = "at least 0" if least == 0 else "above 0"
        raise UserError(
            f"network_args: {name}={value!r} must be a number {bound}; write {name}={'0.01' if least == 0 else '16'}"
        )
    return number


def _width(value: Any) -> float | None:
    """None for 0, as for nothing."""
    try:
        number = float(value or 0)
        if number:
            power_profile.exponent(number)
    except (TypeError, ValueError):
        what = f"{EMA}={value!r} must be above 0 and at most {power_profile.WIDEST:.4f}: the width of the average"
        raise UserError(f"network_args: {what} as a share of the run; write {EMA}=0.1") from None
    return number or None


def _words(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, (list, tuple)) else re.split(r"[,\s]+", str(value or ""))
    return tuple(str(word) for word in words if word)


def _role_patterns(value: Any) -> tuple[str, ...]:
    patterns = _words(value)
    for pattern in patterns:
        if pattern != DEFAULT and not any(fnmatchcase(name, pattern) for name in ROLE_NAMES):
            raise UserError(f"network_args: wd_roles={pattern!r} matches no role; {did_you_mean(pattern, ROLE_NAMES)}")
    return patterns
