"""What is installed, what sd-scripts asks for, what is active, and what is known to break in this combination."""

import dataclasses as dc
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import toml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from hina_kohya import patch
from hina_kohya.patch.targets import SD_SCRIPTS, TARGETS, Target
from hina_kohya.trainers import checkouts, optimizer_names, sd_scripts
from hina_kohya.trainers.call_sites import Outcome, Verdict
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.errors import UserError

# What training with adapters stands on; the rest is shown where it is installed.
NEEDED = (
    "torch",
    "accelerate",
    "transformers",
    "diffusers",
    "safetensors",
    "toml",
    "bitsandbytes",
    "lycoris-lora",
    "wrapt",
)
OPTIONAL = (
    "numpy",
    "rich",
    "adv-optm",
    "pytorch-optimizer",
    "prodigy-plus-schedule-free",
    "prodigyopt",
    "schedulefree",
)


@dc.dataclass(frozen=True)
class Broken:
    """Versions of a package that break something; `why` says what was seen and where.

    beside: only together with these versions of another package, as "torch<2.7"
    """

    package: str
    versions: str
    what: str
    why: str
    fix: str
    beside: str = ""

    def breaks(self, versions: Mapping[str, str]) -> bool:
        requirements = [
            Requirement(f"{self.package}{self.versions}"),
            *([Requirement(self.beside)] if self.beside else []),
        ]
        return all(
            (release := versions.get(each.name)) is not None and each.specifier.contains(release, prereleases=True)
            for each in requirements
        )


KNOWN_BROKEN = (
    Broken(
        "torch", "<2.6", "named parameters are missing and optimizer.bin is read unsafely",
        "sd-scripts requires 2.6", "pip install 'torch>=2.6'",
    ),
    Broken(
        "lycoris-lora", ">=3.2.0,<3.2.0.post2", "training stops at the first epoch: on_epoch_start() takes 2 arguments",
        "its source; LyCORIS #249", "pip install -U 'lycoris-lora>=3.2.0.post2'",
    ),
    Broken(
        "lycoris-lora", ">=4.0", "preset=full (the default), full-lin, unet-only fail on SD1.x: duplicated lora name",
        "run with 4.0.0 to 4.1.3", "give preset=attn-mlp in network_args",
    ),
    Broken(
        "lycoris-lora", ">=4.1", "it does not import with this torch: infer_schema, list[int]",
        "run with 4.1.0, 4.1.3 and torch 2.6.0", "pip install 'lycoris-lora<4.1', or torch 2.7", "torch<2.7",
    ),
    Broken(
        "adv-optm", ">=2.5", "Simplified_AdEMAMix, Lion_Prodigy_adv are gone, and some forks then lose all of adv_optm",
        "run with 2.5.16", "pip install 'adv-optm<2.5' for such a fork",
    ),
    Broken(
        "adv-optm", "==2.5.16", "Lion_adv stops under accelerate; state_precision='int8_sr' is damaged by --resume",
        "run", "choose another class or state_precision",
    ),
    Broken(
        "pytorch-optimizer", ">=3.9,<3.10", "its Grams is not the paper's",
        "compared with the authors' grams-pytorch", "use_grams=True of HinaAdamW, or grams-pytorch",
    ),
    Broken(
        "prodigy-plus-schedule-free", ">=2", "runs saved with 1.x do not resume",
        "its README", "finish such runs with 1.9",
    ),
    Broken(
        "bitsandbytes", "<0.45", "8-bit states of older and newer releases do not load into each other",
        "bitsandbytes #1647", "pip install -U bitsandbytes before a run, not in its middle",
    ),
    Broken(
        "bitsandbytes", "<0.50", "on a CPU it stops the process (to 0.48) or misreads (0.49) 8-bit codes such as ours",
        "run with 0.45.0 to 0.50.2; by their source, the CUDA kernels did not change", "pip install -U bitsandbytes",
    ),
)  # fmt: skip


@dc.dataclass(frozen=True)
class Package:
    """One installed package beside what the checkout pins."""

    name: str
    version: str | None
    pinned: str | None

    @property
    def fits(self) -> bool:
        return not (self.version and self.pinned) or self.version.partition("+")[0] in SpecifierSet(self.pinned)


@dc.dataclass(frozen=True)
class Sites:
    """Whether the hooks act in the scripts of one checkout that train adapters, as its source says."""

    checkout: Checkout
    verdicts: dict[str, Verdict]

    def of(self, outcome: Outcome) -> dict[str, str]:
        """Script -> why."""
        return {script: each.why for script, each in self.verdicts.items() if each.outcome is outcome}


@dc.dataclass(frozen=True)
class Environment:
    python: str
    packages: tuple[Package, ...]
    targets: tuple[patch.Status, ...]
    sites: tuple[Sites, ...]  # where the hooks act, of each checkout
    optimizers: dict[str, list[str]]  # package -> short names
    problems: tuple[str, ...]  # wrong here, now
    known: tuple[str, ...]  # breaks where it is used


def look(path: str | Path | None = None) -> Environment:
    """Reads metadata and files only: nothing heavy is imported. Raises UserError where `path` is no checkout."""
    checkout = checkouts.at(path, "--sd-scripts") if path else None
    of_sd_scripts = path if checkout and checkout.trainer is sd_scripts.SD_SCRIPTS else None
    targets = tuple(patch.inspect(name, of_sd_scripts) for name in TARGETS if name != SD_SCRIPTS or _is_meant(checkout))
    target = next((status.target for status in targets if status.name == SD_SCRIPTS), None)
    homes = [checkout] if checkout else [each for trainer in TRAINERS if (each := checkouts.find(trainer)) is not None]
    sites = tuple(Sites(each, {file.name: each.verdict(file.name) for file in each.scripts}) for each in homes)
    pins = _pins(homes[0] if homes else None)
    packages = tuple(
        Package(name, _version(name), pins.get(name)) for name in dict.fromkeys((*NEEDED, *OPTIONAL, *pins))
    )
    optimizers: dict[str, list[str]] = {}
    for entry in optimizer_names.entries():
        optimizers.setdefault(optimizer_names.package(entry), []).append(entry.name)
    listing = tuple(package for package in packages if package.version or package.name in NEEDED)
    problems = (*_problems(packages, target), *_without_hooks(sites))
    return Environment(sys.version.split()[0], listing, targets, sites, optimizers, problems, tuple(_known(packages)))


def _is_meant(checkout: Checkout | None) -> bool:
    """Whether sd-scripts is what the user asks about."""
    return checkout is None or checkout.trainer is sd_scripts.SD_SCRIPTS


def _without_hooks(sites: Sequence[Sites]) -> Iterator[str]:
    for site in sites:
        for script, why in site.of(Outcome.CANNOT).items():
            yield (
                f"the hooks cannot act in {script} of {site.checkout.root}: {why}; use a dotted optimizer_type there, "
                "such as hina_kohya.HinaAdamW, and network_module lycoris.kohya"
            )


def _problems(packages: Sequence[Package], checkout: Target | None) -> Iterator[str]:
    if sys.version_info >= (3, 12):
        yield f"Python {sys.version.split()[0]}: sd-scripts is made for 3.10, this package is tested on 3.11"
    for package in packages:
        if package.version is None and package.name in NEEDED:
            yield f"{package.name} is not installed; pip install {package.name}"
        elif not package.fits:
            fix = f"pip install '{package.name}{package.pinned}'"
            yield f"{package.name} {package.version} is not the {package.pinned} that the trainer pins; {fix}"
    for entry in optimizer_names.entries():
        try:
            optimizer_names.find(entry.name)
        except UserError as error:
            yield str(error)
    yield from _shadows(checkout)


def _known(packages: Sequence[Package]) -> Iterator[str]:
    versions = {package.name: package.version for package in packages if package.version}
    for broken in KNOWN_BROKEN:
        if broken.breaks(versions):
            yield f"{broken.package} {versions[broken.package]}: {broken.what} ({broken.why}); {broken.fix}"


def _shadows(checkout: Target | None) -> Iterator[str]:
    """`networks` has no __init__.py in sd-scripts, so any installed package of that name is found instead."""
    spec = importlib.util.find_spec("networks")
    if spec is not None and spec.origin and (checkout is None or checkout.root not in Path(spec.origin).parents):
        yield f"{Path(spec.origin).parent} hides sd-scripts' networks; uninstall the package that it belongs to"


def _pins(checkout: Checkout | None) -> dict[str, str]:
    """What the checkout asks for in requirements.txt or pyproject.toml, by normalised name."""
    pins = {}
    for line in _requirements(checkout.root) if checkout else ():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:  # options, blank lines, `-e .`
            continue
        if requirement.specifier and (requirement.marker is None or requirement.marker.evaluate()):
            pins[re.sub(r"[-_.]+", "-", requirement.name).lower()] = str(requirement.specifier)
    return pins


def _requirements(checkout: Path) -> list[str]:
    requirements, project = checkout / "requirements.txt", checkout / "pyproject.toml"
    if requirements.is_file():
        return requirements.read_text(encoding="utf-8").splitlines()
    if not project.is_file():
        return []
    try:
        return list(toml.loads(project.read_text(encoding="utf-8")).get("project", {}).get("dependencies", []))
    except (toml.TomlDecodeError, IndexError) as error:
        raise UserError(f"cannot read {project}: {error}") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
