"""What trainers do with `--optimizer_type` and `--optimizer_args`: one row a name, read by hooks, check and demo.

A contract test holds every row, with several sets of arguments, against the real `get_optimizer`.
"""

import dataclasses as dc
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any


@dc.dataclass(frozen=True)
class Row:
    """One name that a trainer resolves itself, without regard to case.

    path   : the class it takes
    package: what it imports first; without it the run stops with ImportError
    adds   : arguments that it gives where the user gives none
    fixes  : arguments that it gives in any case, so that the user's are a TypeError
    again  : it then makes the optimizer once more, without them (a slip, by which 8-bit SGD has no Nesterov momentum)
    """

    name: str
    path: str
    package: str = ""
    adds: Mapping[str, Any] = dc.field(default_factory=dict)
    fixes: Mapping[str, Any] = dc.field(default_factory=dict)
    again: bool = False


@dc.dataclass(frozen=True)
class Gate:
    """Names that begin or end alike: a package is imported for all of them. `closed`: of them only rows are taken."""

    pattern: str
    package: str
    closed: bool = False


@dc.dataclass(frozen=True)
class Making:
    """How one optimizer is made.

    path        : the class; a name without a dot was looked up in torch.optim, as typed
    lr          : None where the optimizer sets it itself; the groups then lose theirs, too
    lr_scheduler: the schedule that takes the place of the user's, if one does
    refusal     : why the trainer stops before it makes anything
    """

    path: str
    arguments: Mapping[str, Any]
    lr: float | None
    package: str = ""
    lr_scheduler: str | None = None
    refusal: str = ""


@dc.dataclass(frozen=True)
class Optimizers:
    """The rows of one trainer. `default`: the name that it takes where none is given, "" if it then stops."""

    rows: tuple[Row, ...]
    gates: tuple[Gate, ...]
    default: str

    @property
    def paths(self) -> dict[str, str]:
        """Name in lower case -> class."""
        return {row.name.lower(): row.path for row in self.rows}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows)

    def making(self, optimizer_type: str, arguments: Mapping[str, Any], lr: float | None) -> Making:
        """What the trainer makes of a name, arguments that could be read, and a learning rate."""
        name = optimizer_type or self.default
        row = next((row for row in self.rows if row.name.lower() == name.lower()), None)
        if row is None:
            return self._of_another(name, arguments, lr)
        keywords = {**row.adds, **arguments}
        if clashes := [key for key in row.fixes if key in arguments]:
            return Making(row.path, keywords, lr, row.package, refusal=f"{row.name} gives {clashes[0]} itself")
        keywords |= {} if row.again else row.fixes
        if row.name == "Adafactor":
            return _adafactor(row, keywords, lr)
        return Making(row.path, keywords, lr, row.package)

    def _of_another(self, name: str, arguments: Mapping[str, Any], lr: float | None) -> Making:
        gate = next((gate for gate in self.gates if fnmatchcase(name.lower(), gate.pattern)), None)
        package = gate.package if gate else ""
        path = name if "." in name else f"torch.optim.{name}"
        refusal = f"names like {gate.pattern} are looked up in a list" if gate is not None and gate.closed else ""
        return Making(path, dict(arguments), lr, package, refusal=refusal)


def _adafactor(row: Row, arguments: Mapping[str, Any], lr: float | None) -> Making:
    """With relative steps, which is the default and what warmup_init needs, the schedule is Adafactor's own."""
    keywords = {"relative_step": True, **arguments}
    if keywords.get("warmup_init"):
        keywords["relative_step"] = True
    if keywords["relative_step"]:
        return Making(row.path, keywords, None, row.package, lr_scheduler=f"adafactor:{lr}")
    return Making(row.path, keywords, lr, row.package)


_BITSANDBYTES = ("AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit", "PagedLion8bit")
_D_ADAPTATION = ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")
_SCHEDULE_FREE = ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")
_EXPERIMENTAL = "dadaptation.experimental"

SD_SCRIPTS = Optimizers(
    rows=(
        Row("AdamW", "torch.optim.AdamW"),
        *(Row(name, f"bitsandbytes.optim.{name}", "bitsandbytes") for name in _BITSANDBYTES),
        Row("Lion", "lion_pytorch.Lion", "lion_pytorch"),
        Row("SGDNesterov", "torch.optim.SGD", adds={"momentum": 0.9}, fixes={"nesterov": True}),
        Row(
            "SGDNesterov8bit", "bitsandbytes.optim.SGD8bit", "bitsandbytes", {"momentum": 0.9}, {"nesterov": True},
            again=True,
        ),
        Row("DAdaptation", f"{_EXPERIMENTAL}.DAdaptAdamPreprint", "dadaptation"),
        Row("DAdaptAdamPreprint", f"{_EXPERIMENTAL}.DAdaptAdamPreprint", "dadaptation"),
        Row("DAdaptAdanIP", f"{_EXPERIMENTAL}.DAdaptAdanIP", "dadaptation"),
        *(Row(name, f"dadaptation.{name}", "dadaptation") for name in _D_ADAPTATION),
        Row("Prodigy", "prodigyopt.Prodigy", "prodigyopt"),
        Row("Adafactor", "transformers.optimization.Adafactor"),
        *(Row(name, f"schedulefree.{name}", "schedulefree") for name in _SCHEDULE_FREE),
    ),
    gates=(
        Gate("*8bit", "bitsandbytes"),
        Gate("dadapt*", "dadaptation", closed=True),
        Gate("*schedulefree", "schedulefree"),
    ),
    default="AdamW",
)  # fmt: skip

MUSUBI = Optimizers(
    rows=(
        Row("AdamW", "torch.optim.AdamW"),
        Row("AdamW8bit", "bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
        Row("Adafactor", "transformers.optimization.Adafactor"),
    ),
    gates=(Gate("*8bit", "bitsandbytes"),),
    default="",
)
