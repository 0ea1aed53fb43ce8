"""The releases of lycoris-lora that pip offers, each installed into a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

OLDEST = Version("3.0.0")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def offered() -> list[str]:
    """Every final or post release from 3.0.0 on, oldest first."""
    command = [*_PIP, "index", "versions", "lycoris-lora"]
    listing = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    found = re.search(r"^Available versions: (.*)$", listing, re.MULTILINE)
    if found is None:
        raise ValueError(f"pip index versions says no versions: {listing!r}")
    return [str(version) for version in sorted(map(Version, found.group(1).split(", "))) if version >= OLDEST]


def install(version: str, folder: Path) -> Path:
    """`folder/<version>`, a site-packages with only that release in it. Installed once."""
    site = folder / version
    if not site.is_dir():
        # Some releases are source archives: setuptools once, and not a fresh one for each.
        tools = folder / "tools"
        if not tools.is_dir():
            _install(tools, "--no-deps", "setuptools>=71")  # builds wheels by itself
        _install(site, "--no-deps", "--no-build-isolation", f"lycoris-lora=={version}", tools=tools)
    return site


def _install(into: Path, *words: str, tools: Path | None = None) -> None:
    partial = into.with_name(f"{into.name}.partial")
    environment = {**os.environ, "PYTHONPATH": str(tools or "")}
    subprocess.run(
        [*_PIP, "install", "--quiet", "--no-compile", "--target", str(partial), *words], check=True, env=environment
    )
    partial.rename(into)
