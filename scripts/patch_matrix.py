"""Tries the patches on every lycoris-lora release that pip offers, and on sd-scripts; prints the tables of the docs.

    python scripts/patch_matrix.py [--releases FOLDER] [--sd-scripts CHECKOUT] [--write]

Each release: installed, patched, imported, trained for three steps with role-aware decay seen in the groups, reverted
byte for byte. Each tag and branch of CHECKOUT: patched, imported, reverted, with `git status` looked at in between.
Exit code 1 if a release is not covered or a step fails. Needs fork, so not for Windows.
"""

import argparse
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

# Imported before the forks, which need them all; not lycoris, of which each fork has its own.
import bitsandbytes  # noqa: F401
import torch
from lycoris_releases import install, offered
from torch import nn

from hina_kohya import patch
from hina_kohya.patch import State, targets
from hina_kohya.patch.manifest import known
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS
from hina_kohya.trainers import hooks

DOCS = Path(__file__).parents[1] / "docs" / "patches.md"
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
    parser.add_argument("--covered", action="store_true", help="name releases without a patch, and go on without them")
    parser.add_argument("--sd-scripts", type=Path, help="clone with all tags and branches")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tables = {"lycoris": lycoris_table(args.releases or folder / "releases", folder, args.covered)}
        if args.sd_scripts:
            tables["sd-scripts"] = sd_scripts_table(args.sd_scripts, folder)
    for name, table in tables.items():
        print("\n".join(table), end="\n\n")
        if args.write:
            text = DOCS.read_text(encoding="utf-8")
            block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
            lines = "\n".join(table)
            DOCS.write_text(
                block.sub(lambda found, lines=lines: f"{found[1]}{lines}\n{found[2]}", text), encoding="utf-8"
            )
    return any("FAILED" in line for table in tables.values() for line in table)


def lycoris_table(releases: Path, folder: Path, covered_only: bool) -> list[str]:
    table = [
        "| lycoris-lora | patch | decay of the groups in three steps of AdamW | reverted |",
        "| --- | --- | --- | --- |",
    ]
    for version in offered():
        covered = next((one.covered for one in known(LYCORIS) if version in one.versions), "FAILED: none")
        if covered_only and "FAILED" in covered:
            print(f"lycoris-lora {version} has no patch yet; run scripts/make_patches.py", file=sys.stderr)
            continue
        site = folder / f"site-{version}"
        shutil.copytree(install(version, releases), site)
        result = in_fork(try_lycoris, version, site)
        table.append(f"| {version} | {covered} | {result} | {'' if 'FAILED' in result else 'byte for byte'} |")
        print(table[-1], file=sys.stderr)
    return table


def try_lycoris(version: str, site: Path) -> str:
    sys.path.insert(0, str(site))
    status = patch.inspect(LYCORIS)
    assert status.target == targets.Target(LYCORIS, site, version, sys.executable)
    assert status.state is State.NOT_PATCHED
    assert status.file is not None
    original = status.file.read_bytes()
    patch.apply(status)
    from lycoris import kohya  # noqa: PLC0415

    assert Path(kohya.__file__) == status.file
    decays = {}
    for algo, arguments in ALGOS.items():
        decays |= train(kohya, algo, arguments)
    patch.revert(patch.inspect(LYCORIS))
    assert status.file.read_bytes() == original
    assert patch.inspect(LYCORIS).state is State.NOT_PATCHED
    return ", ".join(f"{name} {decay:g}" for name, decay in sorted(decays.items()))


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


def sd_scripts_table(checkout: Path, folder: Path) -> list[str]:
    clone = folder / "sd-scripts"
    git(folder, "clone", "--quiet", "--shared", "--no-checkout", str(checkout.absolute()), str(clone))
    git(clone, "sparse-checkout", "set", "--cone", "library")
    branches = git(checkout, "for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin").split()
    # Branches with a folder in their name are of programs.
    own = [f"origin/{branch}" for branch in branches if branch != "HEAD" and "/" not in branch]
    refs = [*known(SD_SCRIPTS)[0].versions, *own]
    table = ["| sd-scripts | commit | of | patched, imported, reverted |", "| --- | --- | --- | --- |"]
    for ref in refs:
        commit, date = git(checkout, "log", "-1", "--format=%H %cs", ref).split()
        git(clone, "checkout", "--quiet", "--force", commit)
        result = in_fork(try_sd_scripts, clone, commit)
        table.append(f"| {ref.removeprefix('origin/')} | {commit[:8]} | {date} | {result} |")
        print(table[-1], file=sys.stderr)
    return table


def try_sd_scripts(clone: Path, commit: str) -> str:
    status = patch.inspect(SD_SCRIPTS, clone)
    assert status.target is not None
    assert status.target.version == commit
    patch.apply(status)
    assert git(clone, "status", "--porcelain") == " M library/__init__.py\n"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(clone))
    import library  # noqa: PLC0415

    assert Path(library.__file__) == status.file
    assert hooks.active()
    patch.revert(patch.inspect(SD_SCRIPTS, clone))
    assert git(clone, "status", "--porcelain") == ""
    return "yes"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def in_fork(act: Callable[..., str], *words: object) -> str:
    """What `act` says in a process of its own, or FAILED and why."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork"), initializer=logging.disable) as pool:
        future = pool.submit(act, *words)
        error = future.exception()
    if error is None:
        return future.result()
    traceback.print_exception(error)
    return f"FAILED: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
