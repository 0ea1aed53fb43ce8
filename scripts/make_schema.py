"""Write what `hina-kohya check` knows of a trainer without a checkout: its options, networks and dataset keys.

    python scripts/make_schema.py 0.10.1=SD_SCRIPTS_OLD 0.11.1=SD_SCRIPTS
    python scripts/make_schema.py 0.3.4=MUSUBI_TUNER

Checkouts of one trainer, the oldest first. Names, types, choices and defaults only, into `hina_kohya/trainers/facts`.
"""

import argparse
import json
from typing import Any

from hina_kohya.check import schema, source_networks, source_options, source_reads
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.checkouts import Checkout

Tables = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", metavar="RELEASE=CHECKOUT")
    paths = dict(word.split("=", 1) for word in parser.parse_args().checkouts)
    sources = {release: checkouts.at(path) for release, path in paths.items()}
    newest = list(sources.values())[-1]
    content = {
        "releases": {release: checkout.commit for release, checkout in sources.items()},
        "trainers": merged({release: source_options.options_of_trainers(each) for release, each in sources.items()}),
        "networks": source_networks.networks_of(newest),
        "datasets": source_networks.dataset_tables(newest),
        "unread": unread(list(sources.values())),
    }
    file = schema.shipped_file(newest.trainer)
    file.write_text(text(content), encoding="utf-8", newline="\n")
    print(f"{file}: {len(content['trainers']) - 1} scripts, {len(content['networks'])} networks")


def unread(sources: list[Checkout]) -> dict[str, list[str]]:
    """Options that a script has and never reads, in any of the releases."""
    of_releases = [source_reads.never_read(each) for each in sources]
    result = {}
    for script, names in of_releases[-1].items():
        common = set(names).intersection(*(each.get(script, names) for each in of_releases))
        result[script] = sorted(common & {*source_options.options_of(sources[-1], script)})
    return result


def merged(releases: dict[str, Tables]) -> Tables:
    """The newest facts of each option; with the releases that have it, where not all of them have."""
    scripts = {script: None for tables in releases.values() for script in tables}
    result: Tables = {}
    for script in scripts:
        result[script] = {}
        by_release = {release: tables[script] for release, tables in releases.items() if script in tables}
        for options in by_release.values():
            result[script] |= options
        for name, facts in result[script].items():
            subset = [release for release, options in by_release.items() if name in options]
            if len(subset) < len(releases):
                result[script][name] = {**facts, "releases": subset}
    return result


def text(content: dict[str, Any]) -> str:
    """JSON with one line an option, so that a difference between two releases can be read."""
    lines = []
    for section, tables in content.items():
        if section == "releases":
            lines.append(f"{json.dumps(section)}: {json.dumps(tables)}")
            continue
        rows = [
            f"  {json.dumps(name)}: {_rows(table) if isinstance(table, dict) else json.dumps(table)}"
            for name, table in tables.items()
        ]
        lines.append(f"{json.dumps(section)}: {{\n" + ",\n".join(rows) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(table: dict[str, Any]) -> str:
    rows = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
    return "{\n" + ",\n".join(rows) + "\n  }"


if __name__ == "__main__":
    main()
