"""Writes patches/ anew: every lycoris-lora release from 3.0.0 on that pip offers, and sd-scripts.

    python scripts/make_patches.py [--releases FOLDER] [--sd-scripts CHECKOUT]

FOLDER keeps the downloaded releases. CHECKOUT is a clone with all tags and branches; without it the tags stay as they
are.

What a patch adds stands in ADDED. It should not change: to a newer package a file with older lines in it is "changed
locally", and its user has to revert with the older package, or to reinstall LyCORIS.
"""

import argparse
import difflib
import hashlib
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import toml
from lycoris_releases import install, offered
from packaging.version import Version

from hina_kohya.patch import newlines, unified
from hina_kohya.patch.manifest import FOLDERS, OURS, line_hash
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS

PATCHES = Path(__file__).parents[1] / "patches"
FILES = {LYCORIS: "lycoris/kohya.py", SD_SCRIPTS: "library/__init__.py"}
LINES = """# >>> hina-kohya >>> `hina-kohya patch revert --target {target}` takes these lines out
try:
    from hina_kohya.kohya import hooks as _hina_hooks
except ModuleNotFoundError as _hina_error:
    if _hina_error.name != "hina_kohya":
        raise
{warning}
else:
    _hina_hooks.install()
# <<< hina-kohya <<<
"""
ADDED = {
    LYCORIS: "\n\n"
    + LINES.format(
        target=LYCORIS,
        warning="""    logger.warning(
        "hina_kohya is not installed any more, so its patch does nothing; "
        "to undo it, move %s.hina-original over %s", __file__, __file__
    )""",
    ),
    SD_SCRIPTS: LINES.format(
        target=SD_SCRIPTS,
        warning="""    import logging as _hina_logging

    _hina_logging.getLogger(__name__).warning(
        "hina_kohya is not installed any more, so its patch does nothing; to undo it, empty %s", __file__
    )""",
    ),
}
HEADER = "# Written by scripts/make_patches.py. sha256 of the published file's bytes, before and after the patch.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--releases", type=Path, help="folder that keeps the downloaded releases")
    parser.add_argument("--sd-scripts", type=Path, help="clone with all tags and branches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.releases or Path(temporary)
        published = [(version, (install(version, folder) / FILES[LYCORIS]).read_bytes()) for version in offered()]
    # Only neighbours are one range: a later release may go back to an earlier file.
    runs = [(data, [version for version, _ in run]) for data, run in itertools.groupby(published, lambda pair: pair[1])]
    write(LYCORIS, [row(LYCORIS, versions, data) for data, versions in runs])
    if args.sd_scripts:
        tags = tags_with_optimizers(args.sd_scripts)
    else:
        tags = toml.load(manifest(SD_SCRIPTS))["patch"][0]["versions"]
    write(SD_SCRIPTS, [{**row(SD_SCRIPTS, tags, b""), "everything": True}])


def manifest(target: str) -> Path:
    return PATCHES / FOLDERS[target] / "manifest.toml"


def row(target: str, versions: list[str], data: bytes) -> dict[str, object]:
    """The manifest's entry of one content; writes its patch and the hashes of its lines."""
    covered = versions[0] if len(versions) == 1 else f"{versions[0]}-{versions[-1]}"
    style, name = newlines.style(data), FILES[target]
    before = newlines.to_lf(data).decode()
    after = before + ADDED[target]
    patched = newlines.from_lf(after.encode(), style)
    compile(patched, name, "exec", dont_inherit=True)
    assert style != newlines.MIXED
    assert OURS not in data
    assert OURS in patched
    assert before[-1:] in ("\n", "")
    split = [text.splitlines(keepends=True) for text in (before, after)]
    diff = "".join(difflib.unified_diff(*split, f"a/{name}", f"b/{name}", n=1))
    folder = PATCHES / FOLDERS[target] / covered
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{Path(name).name}.patch").write_text(diff, encoding="utf-8", newline="\n")
    hashes = "".join(f"{line_hash(line)}\n" for line in unified.lines_of(before)) if before else ""
    (folder / f"{Path(name).name}.lines").write_text(hashes, encoding="utf-8", newline="\n")
    sha256 = {when: hashlib.sha256(bytes_).hexdigest() for when, bytes_ in (("before", data), ("after", patched))}
    return {"range": covered, "versions": versions, "newline": style, **sha256}


def write(target: str, rows: list[dict[str, object]]) -> None:
    content = toml.dumps({"file": FILES[target], "patch": rows})
    manifest(target).write_text(HEADER + content, encoding="utf-8", newline="\n")
    for folder in manifest(target).parent.iterdir():
        if folder.is_dir() and folder.name not in [row["range"] for row in rows]:
            shutil.rmtree(folder)


def tags_with_optimizers(checkout: Path) -> list[str]:
    """The tags with the function that we hook, oldest first. The file must be empty in every commit of every branch."""
    commits = git(checkout, "rev-list", "--all").split()
    asked = "".join(f"{commit}:{FILES[SD_SCRIPTS]}\n" for commit in commits)
    sizes = set(git(checkout, "cat-file", "--batch-check=%(objectsize)", given=asked).splitlines())
    assert {size for size in sizes if not size.endswith(" missing")} == {"0"}
    found = [tag for tag in git(checkout, "tag").split() if "def get_optimizer(" in train_util(checkout, tag)]
    return sorted(found, key=Version)


def train_util(checkout: Path, tag: str) -> str:
    path = "library/train_util.py"
    return git(checkout, "show", f"{tag}:{path}") if git(checkout, "ls-tree", tag, path) else ""


def git(checkout: Path, *words: str, given: str = "") -> str:
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


if __name__ == "__main__":
    main()
