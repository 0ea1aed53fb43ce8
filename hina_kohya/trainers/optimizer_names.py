"""`--optimizer_type` to a class: the entry-point group `sd_scripts.optimizers`, this package's and anybody's."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hina_kohya.core.hyper import did_you_mean
from hina_kohya.trainers.errors import UserError

GROUP = "sd_scripts.optimizers"
# What sd-scripts resolves itself in library.train_util.get_optimizer, without regard to case, and the class it takes.
_OWN_CLASSES = {
    "AdamW": "torch.optim.AdamW",
    **{name: f"bitsandbytes.optim.{name}" for name in (
        "AdamW8bit", "PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit", "PagedLion8bit")},
    "Lion": "lion_pytorch.Lion",
    "SGDNesterov": "torch.optim.SGD",
    "SGDNesterov8bit": "bitsandbytes.optim.SGD8bit",
    **dict.fromkeys(("DAdaptation", "DAdaptAdamPreprint"), "dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdanIP": "dadaptation.experimental.DAdaptAdanIP",
    **{name: f"dadaptation.{name}" for name in (
        "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")},
    "Prodigy": "prodigyopt.Prodigy",
    "Adafactor": "transformers.optimization.Adafactor",
    **{name: f"schedulefree.{name}" for name in ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")},
}  # fmt: skip
OWN_NAMES = tuple(_OWN_CLASSES)
OWN_PATHS = {name.lower(): path for name, path in _OWN_CLASSES.items()}


def entries() -> list[EntryPoint]:
    """Every entry of the group, sorted by name."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name.lower())


def find(name: str) -> EntryPoint | None:
    """The entry of a short name, without regard to case. Raises UserError if two packages claim it."""
    found = [entry for entry in entries() if entry.name.lower() == name.lower()]
    if len({entry.value for entry in found}) > 1:
        claims = " and ".join(f"{package(entry)} ({path(entry)})" for entry in found)
        raise UserError(f"optimizer_type {name} is claimed by {claims}; use the dotted path of the one you mean")
    return found[0] if found else None


def package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown package"


def path(entry: EntryPoint) -> str:
    """The dotted path that works without any hook."""
    return entry.value.replace(":", ".")


def resolve(optimizer_type: str | None) -> Any:
    """The class of a registered optimizer; None where sd-scripts resolves the name itself.

    Raises UserError for a short name that nobody knows.
    """
    name = (optimizer_type or "").strip()
    if not name or name.lower() in OWN_PATHS:
        return None
    if "." in name:
        return _load(name) if name.startswith("hina_kohya.") or name in map(path, entries()) else None
    if name in _torch_names():
        return None
    entry = find(name)
    if entry is None:
        known = {*OWN_NAMES, *_torch_names(), *(entry.name for entry in entries())}
        raise UserError(
            f"there is no optimizer {name!r}; {did_you_mean(name, known)} (hina-kohya optimizers lists them)"
        )
    return _load(path(entry))


def _load(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optimizer_type {dotted} cannot be loaded: {error}") from error


def _torch_names() -> list[str]:
    import torch.optim  # noqa: PLC0415 (names are asked for where torch is not needed)

    return [name for name, thing in vars(torch.optim).items() if isinstance(thing, type)]
