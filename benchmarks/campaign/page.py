"""What the Markdown of every campaign has."""

from collections.abc import Iterable, Sequence


def stale(count: int) -> list[str]:
    """The note about runs that are older than the code, if there are any."""
    return [f"- **{count} runs were made by other code of ours**; `--rerun-stale` makes them again"] if count else []


def images(drawn: Sequence[str]) -> list[str]:
    return [f"![{name.rsplit('.', 1)[0]}]({name})" for name in drawn]


def joined(parts: Iterable[str]) -> str:
    """Those that say something."""
    return "\n\n".join(part.strip() for part in parts if part)
