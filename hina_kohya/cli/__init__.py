"""`hina-kohya COMMAND ...`: one module a command, imported when it is asked for."""

import argparse
import os
import sys
import traceback
from importlib import import_module

import hina_kohya
from hina_kohya.cli.parser import Parser
from hina_kohya.text import did_you_mean

# name: what it does. A command is a module of this package with `main(argv) -> exit code`.
COMMANDS = {
    "adlrns": "plain LoRA files out of ADLRNS's, and the standalone layer at work",
    "check": "find what is wrong with a run before a model is loaded: a TOML, a command line, a script",
    "doctor": "versions, hashes, what is active, what is known to break",
    "inspect": "what is in an adapter file, and how alike two are",
    "launch": "start a trainer of sd-scripts with the hooks, after a check",
    "merge": "one LoRA file out of several with weights, exactly",
    "optimizers": "list the optimizers, or show what one accepts",
    "patch": "put the hooks into LyCORIS and sd-scripts, and take them out again",
    "profile": "what a step of an optimizer costs, and which technique's it is",
    "report": "one page about a training run: curves, best step, blocks, samples; or about two",
    "resize": "a smaller LoRA file out of any LoRA, LoCon, LoKr or LoHa, by bytes, rank or share of energy",
    "soup": "the average of adapter files that one training saved, all alike or the later ones more",
    "train": "teach a small text-to-image model new digits through an adapter",
}
UNEXPECTED = 70  # of sysexits.h: a fault of the program itself
INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
_TRACEBACK = "--traceback"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="hina-kohya", description="Optimizers and adapters for sd-scripts and musubi-tuner.")
    parser.add_argument("--version", action="version", version=hina_kohya.__version__)
    parser.add_argument(_TRACEBACK, action="store_true", help="show where in the program an unexpected error came from")
    commands = "\n".join(f"  {name:10s} {doc}" for name, doc in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{commands}\n\n`hina-kohya COMMAND --help` says more."
    parser.add_argument("command", metavar="COMMAND", help=", ".join(COMMANDS))
    # The command parses the rest: argparse's own subparsers would need every command imported.
    words, shows = _without_traceback(sys.argv[1:] if argv is None else argv)
    name = parser.parse_args(words[:1]).command
    if name not in COMMANDS:
        parser.error(f"there is no command {name}; {did_you_mean(name, COMMANDS)}")
    try:
        return import_module(f"{__name__}.{name}").main(words[1:])
    except BrokenPipeError:  # `hina-kohya ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"hina-kohya {name}: stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the one border for what nobody expected: said in a line, with its exit code
        if shows:
            traceback.print_exc()
        message = " ".join(str(error).split()) or "nothing said"
        print(f"hina-kohya {name}: unexpected {type(error).__name__}: {message[:300]}", file=sys.stderr)
        print(f"this is a fault of hina-kohya; hina-kohya {_TRACEBACK} {name} ... shows where", file=sys.stderr)
        return UNEXPECTED


def _without_traceback(words: list[str]) -> tuple[list[str], bool]:
    """Our word may stand anywhere before a trainer's words."""
    for number, word in enumerate(words):
        if word == _TRACEBACK:
            return words[:number] + words[number + 1 :], True
        if word == "--" or word.endswith(".py"):
            break
    return words, False
