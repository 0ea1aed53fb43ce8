"""Tries the patches on every lycoris-lora release that pip offers, and on sd-scripts; writes patches/tried.toml.

    python scripts/patch_matrix.py [--releases FOLDER] [--sd-scripts CLONE] [--write]

Each release: installed, patched with the trial that `apply` does, imported, trained for three steps with role-aware
decay seen in the groups, reverted byte for byte. Each tag and branch of CLONE: patched with that trial, imported,
reverted, with `git status` looked at in between. Exit code 1 if a step fails. Needs fork, so not for Windows: trials,
too, are forks of this process, which has torch already, and not a Python of their own as those of `apply`.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Imported before the forks, which need them all; not lycoris, of which each fork has its own.
import bitsandbytes  # noqa: F401
import toml
import torch
from lycoris_releases import install, offered
from packaging.version import Version
from torch import nn

from hina_kohya import patch
from hina_kohya.patch import State, block, targets, trial, trial_process
from hina_kohya.patch.targets import FILES, LYCORIS, SD_SCRIPTS, Target
from hina_kohya.trainers import hooks

ROOT = Path(__file__).parents[1]
TRIED = ROOT / "patches" / "tried.toml"
HEADER = "# Written by scripts/patch_matrix.py --write: what the patches were tried on.\n\n"
FAILED = "FAILED"
DECAY = 0.1
# bypass_mode: LyCORIS 3.1.0 to 3.1.1.post1 take it as on where it is not given, and dora_scale is then never used.
ALGOS = {"lokr": {"factor": "4"}, "lora": {"dora_wd": "True", "bypass_mode": "False"}}


class Transformer2DModel(nn.Module):
    """Of the name that LyCORIS's presets look for."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(16, 32)
        self.outside = nn.Linear(32, 16)

    def forward(self, x):
        return self.outside(torch.relu(self.inside(x)))


class CLIPAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(16, 16)

    def forward(self, x):
        return self.q_proj(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--releases", type=Path, help="folder that keeps the downloaded releases")
    parser.add_argument(
        "--known", action="store_true", help="name releases that are not in the list, and leave them out"
    )
    parser.add_argument("--sd-scripts", type=Path, help="clone with all tags and branches")
    parser.add_argument("--write", action="store_true", help=f"write what went well into {TRIED.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trial.attempt = attempt_in_fork
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results = {LYCORIS: dict(lycoris_results(args.releases or folder / "releases", folder, args.known))}
        if args.sd_scripts:
            results[SD_SCRIPTS] = dict(sd_scripts_results(args.sd_scripts, folder))
    failed = [name for names in results.values() for name, result in names.items() if FAILED in result]
    print(f"{sum(map(len, results.values())) - len(failed)} went well; failed: {', '.join(failed) or 'none'}")
    if args.write and not failed:
        tried = toml.load(TRIED)
        tried[LYCORIS] = list(results[LYCORIS])
        if args.sd_scripts:
            tried[SD_SCRIPTS] = {name: commit for name, commit, _ in sd_scripts_refs(args.sd_scripts)}
        TRIED.write_text(HEADER + toml.dumps(tried), encoding="utf-8", newline="\n")
    return bool(failed)


def lycoris_results(releases: Path, folder: Path, known: bool) -> Iterator[tuple[str, str]]:
    for version in offered():
        if known and version not in block.tried(LYCORIS):
            print(f"lycoris-lora {version} was never tried; run scripts/patch_matrix.py --write", file=sys.stderr)
            continue
        site = folder / f"site-{version}"
        shutil.copytree(install(version, releases), site)
        yield said("lycoris-lora", version, in_fork(try_lycoris, version, site))


def said(what: str, name: str, result: str) -> tuple[str, str]:
    print(f"{what} {name}: {result}", flush=True)
    return name, result


def try_lycoris(version: str, site: Path) -> str:
    sys.path.insert(0, str(site))
    status = patch.inspect(LYCORIS)
    assert status.target == targets.Target(LYCORIS, site, version, sys.executable)
    assert status.state is State.NOT_PATCHED
    assert status.file is not None
    original = status.file.read_bytes()
    outcome = tried(patch.apply(status))
    from lycoris import kohya  # noqa: PLC0415

    assert Path(kohya.__file__) == status.file
    decays = {}
    for algo, arguments in ALGOS.items():
        decays |= train(kohya, algo, arguments)
    patch.revert(patch.inspect(LYCORIS))
    assert status.file.read_bytes() == original
    assert patch.inspect(LYCORIS).state is State.NOT_PATCHED
    return f"{outcome}; decay {', '.join(f'{name} {decay:g}' for name, decay in sorted(decays.items()))}; reverted"


def attempt_in_fork(target: Target, source: Path) -> tuple[str, str]:
    result = in_fork(trial_process.main, target.name, target.root, FILES[target.name], source)
    return ("", result) if result.startswith(FAILED) else (result, "")


def tried(words: str) -> str:
    """The trial's outcome out of what apply says."""
    outcome = words.splitlines()[1].removeprefix("tried on a copy first: ")
    assert outcome.startswith("imported, hooks active"), words
    return outcome


def train(kohya, algo: str, arguments: dict[str, str]) -> dict[str, float]:
    """Three steps as sd-scripts does them; the decay of every kind of parameter."""
    torch.manual_seed(0)
    unet, text_encoder = nn.Sequential(Transformer2DModel()), nn.Sequential(CLIPAttention())
    words = {"algo": algo, "weight_decay": str(DECAY), **arguments}
    network = kohya.create_network(1.0, 2, 1.0, None, [text_encoder], unet, **words)
    network.apply_to([text_encoder], unet, True, True)
    made = network.prepare_optimizer_params(1e-3, 1e-3, 1e-3)
    groups = made[0] if isinstance(made, tuple) else made
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.5)
    before = {name: param.detach().clone() for name, param in network.named_parameters()}
    for _ in range(3):
        loss = (unet(text_encoder(torch.randn(8, 16))) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    moved = [name for name, param in network.named_parameters() if not torch.equal(param, before[name])]
    assert moved == list(before), f"{set(before) - set(moved)} did not move"
    decays = {}
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            expected = 0.0 if name.endswith("dora_scale") else DECAY
            assert group["weight_decay"] == expected, f"{name} decays by {group['weight_decay']}"
            decays[name.partition(".")[2].removesuffix(".weight")] = expected
    assert len(decays) > 1
    return decays


def sd_scripts_refs(checkout: Path) -> Iterator[tuple[str, str, str]]:
    """(name, start of the commit, date) of each tag and branch that has the function which the hooks wrap."""
    tags = git(checkout, "tag").split()
    listing = "--format=%(refname:lstrip=3)", "refs/remotes/origin"
    remote = [(branch, f"origin/{branch}") for branch in git(checkout, "for-each-ref", *listing).split()]
    local = [
        (branch, branch)
        for branch in git(checkout, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads").split()
    ]
    # Branches with a folder in their name are of programs.
    branches = [pair for pair in sorted(remote or local) if pair[0] != "HEAD" and "/" not in pair[0]]
    for name, ref in [*((tag, tag) for tag in sorted(tags, key=Version)), *branches]:
        commit, date = git(checkout, "log", "-1", "--format=%H %cs", ref).split()
        files = git(checkout, "grep", "-l", "def get_optimizer(", commit, "--", "library", check=False)
        if files:
            yield name, commit[:8], date


def sd_scripts_results(checkout: Path, folder: Path) -> Iterator[tuple[str, str]]:
    clone = folder / "sd-scripts"
    git(folder, "clone", "--quiet", "--shared", "--no-checkout", str(checkout.absolute()), str(clone))
    git(clone, "sparse-checkout", "set", "--cone", "library", "networks")
    for name, commit, date in sd_scripts_refs(checkout):
        git(clone, "checkout", "--quiet", "--force", commit)
        yield said("sd-scripts", f"{name} {commit} {date}", in_fork(try_sd_scripts, clone, commit))


def try_sd_scripts(clone: Path, commit: str) -> str:
    status = patch.inspect(SD_SCRIPTS, clone)
    assert status.target is not None
    assert (status.target.version or "").startswith(commit)
    outcome = tried(patch.apply(status))
    assert git(clone, "status", "--porcelain") == " M library/__init__.py\n"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(clone))
    import library  # noqa: PLC0415

    assert Path(library.__file__) == status.file
    assert hooks.active()
    patch.revert(patch.inspect(SD_SCRIPTS, clone))
    assert git(clone, "status", "--porcelain") == ""
    return f"{outcome}; reverted"


def git(folder: Path, *words: str, check: bool = True) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=check, stdout=subprocess.PIPE, text=True).stdout


def in_fork(act: Callable[..., str], *words: object) -> str:
    """What `act` says in a process of its own, or FAILED and why."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=logging.disable) as pool:
        future = pool.submit(act, *words)
        error = future.exception()
    if error is None:
        return future.result()
    traceback.print_exception(error)
    return f"{FAILED}: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
