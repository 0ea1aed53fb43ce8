"""Hold a release's tag against the version and the changelog, and print the changelog's section as the release's notes.

python scripts/release.py v0.2.0 > notes.md    # exit code 1 and one line if anything does not fit
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """The section of a version. Raises ValueError where tag, version and changelog are not of one release."""
    if tag != f"v{version}":
        raise ValueError(
            f"the tag is {tag}, but hina_kohya.__version__ is {version}: tag v{version}, or change the version"
        )
    section = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## \[|\Z)", changelog, re.M | re.S
    )
    if not section:
        raise ValueError(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`: write one over what is new")
    if not section[1].strip():
        raise ValueError(f"CHANGELOG.md says nothing under {version}: write what is new")
    return section[1].strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="v and the version, such as v0.2.0")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from hina_kohya import __version__  # noqa: PLC0415 (imports no torch)

    try:
        sys.stdout.write(notes(args.tag, __version__, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    except ValueError as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
