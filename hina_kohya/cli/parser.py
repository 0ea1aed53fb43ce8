"""argparse that names the nearest option to one that there is not."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hina_kohya.core.hyper import did_you_mean


class Parser(argparse.ArgumentParser):
    """For every command."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return options

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        option = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if option is None:
            self.error(f"one word too many: {rest[0]}")
        self.error(f"there is no option {option}; {did_you_mean(option, _options(self))}")


def _options(parser: argparse.ArgumentParser) -> set[str]:
    names = {name for name in parser._option_string_actions if name.startswith("--")}
    commands = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return names.union(*(_options(command) for choices in commands for command in choices.values()))
