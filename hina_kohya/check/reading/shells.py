"""What three shells write alike: continuations, comments, variables and blocks, as data."""

import dataclasses as dc
import re


@dc.dataclass(frozen=True)
class Shell:
    """
    escape      : the last character of a line that goes on, which also makes the next character plain
    quotes      : what holds a word together
    comment     : from its beginning to the end of the line
    assignment  : a line that sets a variable: groups `name`, `value` and, for one that appends, `more`
    variable    : the use of one: groups `name` and, where the shell has it, `default`; without a name only running
                  would tell
    opens       : a line that begins a block whose lines may not be run, or be run several times
    closes      : the line that ends one
    any_case    : letter case of variables does not matter
    """

    escape: str
    quotes: str
    comment: re.Pattern[str]
    assignment: re.Pattern[str]
    variable: re.Pattern[str]
    opens: re.Pattern[str]
    closes: re.Pattern[str]
    any_case: bool = True


SH = Shell(
    escape="\\",
    quotes="\"'",
    comment=re.compile(r"(?:^|(?<=\s))#.*"),
    assignment=re.compile(r"(?:(?:export|declare|readonly)\s+)?(?P<name>[A-Za-z_]\w*)(?P<more>\+)?=(?P<value>.*)"),
    variable=re.compile(
        r"\$\{(?P<name>[A-Za-z_]\w*)(?:\[[@*]\])?(?::?-(?P<default>[^{}$]*))?\}"
        r"|\$(?P<plain>[A-Za-z_]\w*)|\$\((?:[^()]|\([^()]*\))*\)|\$\{[^}]*\}|\$[@*#?\d]|`[^`]*`"
    ),
    opens=re.compile(r"(?:if|for|while|until|case)\b(?!.*\b(?:fi|done|esac)$)|(?:function\s+)?[\w-]+\s*\(\)|\{$"),
    closes=re.compile(r"(?:fi|done|esac)\b|\}"),
    any_case=False,
)
BATCH = Shell(
    escape="^",
    quotes='"',
    comment=re.compile(r"^\s*@?(?:rem\b|::).*", re.IGNORECASE),
    assignment=re.compile(r'@?set\s+"?(?P<name>\w+)=(?P<value>[^"]*?)"?', re.IGNORECASE),
    variable=re.compile(r"%(?P<name>\w+)%|!(?P<plain>\w+)!|%~?\w*\d|%%~?\w+", re.IGNORECASE),
    opens=re.compile(r".*\($"),
    closes=re.compile(r"\)"),
)
POWERSHELL = Shell(
    escape="`",
    quotes="\"'",
    comment=re.compile(r"(?:^|(?<=\s))#.*"),
    assignment=re.compile(r"(?:\[[\w.]+\])?\$(?P<name>\w+)\s*(?P<more>\+)?=\s*(?P<value>.*?);?"),
    variable=re.compile(
        r"\$\{(?P<name>\w+)\}|[$@](?P<plain>[A-Za-z_][\w:]*)|\$\((?:[^()]|\([^()]*\))*\)", re.IGNORECASE
    ),
    opens=re.compile(r".*\{$"),
    closes=re.compile(r"\}"),
)
OF_ENDING = {".sh": SH, ".bash": SH, ".bat": BATCH, ".cmd": BATCH, ".ps1": POWERSHELL}
