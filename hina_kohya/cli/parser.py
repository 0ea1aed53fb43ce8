"""argparse that names the nearest option to one that there is not."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hina_kohya.text import did_you_mean


class Parser(argparse.ArgumentParser):
    """For every command."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Where something is missing, an option that there is not is the likely reason."""
        if "required" in message and (option := self._unknown()):
            message = self._no_option(option)
        super().error(message)

    def _unknown(self) -> str | None:
        names = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
        known = _options(self)
        return next((name for name in names if not any(option.startswith(name) for option in known)), None)

    def _no_option(self, option: str) -> str:
        return f"there is no option {option}; {did_you_mean(option, _options(self))}"

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return options

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        option = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if option is None:
            self.error(f"one word too many: {rest[0]}")
        self.error(self._no_option(option))


def _options(parser: argparse.ArgumentParser) -> set[str]:
    names = {name for name in parser._option_string_actions if name.startswith("--")}
    commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return names.union(*(_options(command) for choices in commands for command in choices.values()))
