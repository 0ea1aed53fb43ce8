"""Printed lines, typed into a file as a user would, and what they have to do there."""

import re

from hina_kohya.check.finding import Level


def typed(text, steps):
    """A TOML with these lines: in the place of the old ones, else at its top."""
    for verb, line in steps:
        key = line.partition(" = ")[0] if verb == "write" else line
        pattern = re.compile(rf"^{re.escape(key)}\s*=.*$", re.MULTILINE)
        if verb == "remove":
            text = pattern.sub("", text)
        elif pattern.search(text):
            text = pattern.sub(lambda _, line=line: line, text, count=1)
        else:
            text = f"{line}\n{text}"
    return text


def assert_mends(found, remedy, after):
    """All its findings are gone, and nothing has come but what cannot be looked at."""
    before = {each.identity for each in found.findings}
    left = {each.identity for each in after.findings if each.level is not Level.NOT_LOOKED_AT}
    assert not left & {each.identity for each in remedy.findings}, remedy.steps
    assert left <= before, (remedy.steps, left - before)
