"""The commands of a .sh, .bat or .ps1, with their line continuations and simple variables. Nothing is run.

A variable counts where it is set to what is written out, outside any condition, loop or function. What depends on any
other stays in the words as `arguments.UNKNOWN`, and ends as something that was not looked at.
"""

import dataclasses as dc
import re
from collections.abc import Iterator

from hina_kohya.check.reading.shells import POWERSHELL, SH, Shell

Value = str | tuple[str, ...] | None  # an array is a tuple; None: only running would tell


@dc.dataclass(frozen=True)
class Command:
    """conditional: in a block that may not be run; broken: why it ends earlier than it was meant to, if it does"""

    line: int
    words: tuple[str, ...]
    conditional: bool = False
    broken: str = ""


def commands_of(text: str, shell: Shell) -> list[Command]:
    return list(_Script(shell).commands(text))


@dc.dataclass
class _Script:
    shell: Shell
    variables: dict[str, Value] = dc.field(default_factory=dict)
    depth: int = 0

    def commands(self, text: str) -> Iterator[Command]:
        for number, line, broken in self._lines(text):
            self.depth -= bool(self.depth and self.shell.closes.match(line))
            if match := self.shell.assignment.fullmatch(line):
                self._assign(match)
                continue
            for part in self._parts(line):
                yield Command(number, tuple(self._words(part)), self.depth > 0, broken)
            self.depth += bool(self.shell.opens.match(line))

    def _lines(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Each line with those that continue it: its number, its text, and why it is broken off."""
        statement, start = "", 0
        for number, raw in enumerate(text.split("\n"), 1):
            line = self._without_comment(raw)
            start = start or number
            bare = line.rstrip()
            goes_on = bare.endswith(self.shell.escape)
            statement = f"{statement} {bare.removesuffix(self.shell.escape)}".strip()
            is_broken = goes_on and bare != line
            if is_broken or not (goes_on or self._is_open(statement)):
                what = f"line {number} ends in {self.shell.escape} and a space, so it does not go on in the next line"
                if statement:
                    yield start, statement, what * is_broken
                statement, start = "", 0
        if statement:
            yield start, statement, ""

    def _without_comment(self, line: str) -> str:
        match = self.shell.comment.search(line)
        if match is None or any(line[: match.start()].count(quote) % 2 for quote in self.shell.quotes):
            return line
        return line[: match.start()].rstrip()

    def _is_open(self, line: str) -> bool:
        """Whether a line is the beginning of an array."""
        match = self.shell.assignment.match(line)
        return bool(match and re.match(r"[^=]*=\s*@?\([^)]*$", line))

    def _assign(self, match: re.Match[str]) -> None:
        name, before = self._key(match["name"]), self.variables.get(self._key(match["name"]))
        value = None if self.depth else self._value(match["value"].strip())
        if match.groupdict().get("more"):
            value = (*before, *value) if isinstance(before, tuple) and isinstance(value, tuple) else None
        self.variables[name] = value

    def _value(self, text: str) -> Value:
        if array := re.fullmatch(r"@?\((.*)\)", text, flags=re.DOTALL):
            return tuple(self._words(array[1] if self.shell is SH else array[1].replace(",", " ")))
        if not {*self.shell.quotes}.intersection("'"):  # a batch file takes the rest of the line as it is
            return "".join(self._words(f'"{text}"'))
        if self.shell is POWERSHELL and not re.fullmatch(r"\"[^\"]*\"|'[^']*'|[\w.+-]+|\$\w+", text):
            return None
        words = list(self._words(text))
        return words[0] if len(words) == 1 else None if words else ""

    def _key(self, name: str) -> str:
        return name.lower() if self.shell.any_case else name

    def _parts(self, line: str) -> list[str]:
        """The commands of a line: it is cut at `&`, `;` and `|` outside quotes."""
        parts, quote, start = [], "", 0
        for position, char in enumerate(line):
            if quote:
                quote = "" if char == quote else quote
            elif char in self.shell.quotes:
                quote = char
            elif char in "&|;":
                parts.append(line[start:position])
                start = position + 1
        return [part for part in (*parts, line[start:]) if part.strip()]

    def _words(self, line: str) -> Iterator[str]:  # noqa: PLR0912 (one automaton)
        """As the shell hands them to a program."""
        word, quote, in_word, position = "", "", False, 0
        while position < len(line):
            char, following = line[position], line[position + 1 : position + 2]
            match = self.shell.variable.match(line, position) if quote != "'" else None
            position += 1
            if match:
                value = self._of_variable(match)
                position = match.end()
                if isinstance(value, tuple):
                    yield from value
                    in_word = bool(word)  # of "${array[@]}" nothing is left beside its words
                else:
                    word, in_word = word + value, True
            elif quote and char == quote:
                quote = ""
            elif quote:
                if char == self.shell.escape and quote == '"' and following and following in '"\\$`':
                    char, position = following, position + 1
                word += char
            elif char in self.shell.quotes:
                quote, in_word = char, True
            elif char.isspace():
                if in_word:
                    yield word
                word, in_word = "", False
            elif char == self.shell.escape and following:
                word, in_word, position = word + following, True, position + 1
            else:
                word, in_word = word + char, True
        if in_word:
            yield word

    def _of_variable(self, match: re.Match[str]) -> str | tuple[str, ...]:
        groups = match.groupdict()
        name = groups.get("name") or groups.get("plain") or ""
        # An empty default is one that the environment has to fill.
        if name and self._key(name) not in self.variables and groups.get("default"):
            return groups["default"]
        value = self.variables.get(self._key(name)) if name else None
        return f"\0{name or match[0].strip('$%`')}\0" if value is None else value
