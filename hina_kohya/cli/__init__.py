"""`hina-kohya COMMAND ...`: one module a command, imported when it is asked for."""

import argparse
import os
import sys
from importlib import import_module

import hina_kohya

# name: what it does. A command is a module of this package with `main(argv) -> exit code`.
COMMANDS = {
    "adlrns": "plain LoRA files out of ADLRNS's, and the standalone layer at work",
    "check": "find what is wrong with a training TOML before a model is loaded",
    "doctor": "versions, hashes, what is active, what is known to break",
    "launch": "start a trainer of sd-scripts with the hooks, after a check",
    "optimizers": "list the optimizers, or show what one accepts",
    "patch": "put the hooks into LyCORIS and sd-scripts, and take them out again",
    "train": "teach a small text-to-image model new digits through an adapter",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hina-kohya", description="Optimizers and adapters for sd-scripts.")
    parser.add_argument("--version", action="version", version=hina_kohya.__version__)
    commands = "\n".join(f"  {name:10s} {doc}" for name, doc in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{commands}\n\n`hina-kohya COMMAND --help` says more."
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    # The command parses the rest: argparse's own subparsers would need every command imported.
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words[:1])
    try:
        return import_module(f"{__name__}.{args.command}").main(words[1:])
    except BrokenPipeError:  # `hina-kohya ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
