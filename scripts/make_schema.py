"""Write hina_kohya/kohya/checking/sd_scripts.json: facts about sd-scripts' options, read off a checkout of it.

    python scripts/make_schema.py SD_SCRIPTS [CHECKOUT_OF_A_BRANCH ...]

Names, types, choices and defaults only; of a branch, only the network modules that the first checkout lacks.
"""

import argparse
import json
from pathlib import Path

from hina_kohya.kohya.checking import schema, source_networks, source_options
from hina_kohya.kohya.targets import commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    checkouts = parser.parse_args().checkouts
    networks: dict[str, dict] = {}
    for checkout in checkouts:
        networks = source_networks.networks_of(checkout / "networks") | networks
    facts = {
        "repository": "https://github.com/kohya-ss/sd-scripts",
        "commits": [commit(checkout) or checkout.name for checkout in checkouts],
        "trainers": source_options.options_of_trainers(checkouts[0]),
        "networks": dict(sorted(networks.items())),
        "datasets": source_networks.dataset_tables(checkouts[0]),
    }
    schema.SHIPPED.write_text(_text(facts), encoding="utf-8", newline="\n")
    print(f"{schema.SHIPPED}: {len(facts['trainers'])} trainers, {len(networks)} networks")


def _text(facts: dict) -> str:
    """JSON with one line an option, so that a difference between two commits of sd-scripts can be read."""
    lines = []
    for section, content in facts.items():
        if not isinstance(content, dict):
            lines.append(f"{json.dumps(section)}: {json.dumps(content)}")
            continue
        tables = [f"  {json.dumps(name)}: {_rows(table)}" for name, table in content.items()]
        lines.append(f"{json.dumps(section)}: {{\n" + ",\n".join(tables) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rows(table: dict) -> str:
    rows = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
    return "{\n" + ",\n".join(rows) + "\n  }"


if __name__ == "__main__":
    main()
