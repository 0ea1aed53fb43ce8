"""Pictures as SVG inside the page: in its colours, with words as text, in one shape for desks and one for phones."""

import dataclasses as dc
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

# Drawn in these colours, shown in the page's variables of light and dark.
INK, FAINT, LINE = "#1c1c28", "#6b6b7b", "#d9d9e0"
GOOD = "#2e9e5b"
SERIES = ("#2f5fd0", "#c8553d", "#7b4fb5", "#1a8a8a", "#b5811b", "#c2457f", "#4d7a2a", "#5b6b8c")
_VARIABLES = {INK: "ink", FAINT: "faint", LINE: "line", GOOD: "good"} | {
    colour: f"c{number}" for number, colour in enumerate(SERIES)
}
_POINTS = 600  # of a curve; each stands for the lowest and the highest value of its steps
_WIDE, _NARROW = 9.2, 3.7  # inches: about the page's width in a browser, and that of a phone
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words: they can be read aloud, searched and copied
    "text.parse_math": False,  # a name with $ in it is no formula
    "font.family": "sans-serif",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


@dc.dataclass(frozen=True)
class Key:
    """An entry of a legend. style: line, faint, dots, dash, mark or bar."""

    text: str
    colour: str
    style: str = "line"

    @property
    def variable(self) -> str:
        return f"var(--{_VARIABLES[self.colour]})"


@dc.dataclass(frozen=True)
class Figure:
    """What the page shows: one of both pictures. title and caption are plain text."""

    title: str
    caption: str
    wide: Markup
    narrow: Markup
    keys: tuple[Key, ...] = ()


def figure(
    title: str,
    caption: str,
    draw: Callable[[Any, bool], None],
    heights: tuple[float, float],
    keys: Sequence[Key] = (),
) -> Figure:
    """draw(a matplotlib figure, is it narrow); heights: of the wide and the narrow one in inches."""
    wide, narrow = (_svg(title, draw, height, narrow) for height, narrow in zip(heights, (False, True), strict=True))
    return Figure(title, caption, wide, narrow, tuple(keys))


def _svg(title: str, draw: Callable[[Any, bool], None], height: float, narrow: bool) -> Markup:
    import matplotlib  # noqa: PLC0415
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 (no pyplot: no global state, no display)

    # The salt is in all references inside a picture, so that no picture refers to a hidden one's parts.
    own: dict[Any, Any] = {"font.size": 8.5 if narrow else 9, "axes.titlesize": 9 if narrow else 10,
           "svg.hashsalt": f"{title} {narrow}"}  # fmt: skip
    buffer = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, **own}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that matplotlib's font lacks
        canvas = Canvas(figsize=(_NARROW if narrow else _WIDE, height), layout="constrained")
        draw(canvas, narrow)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Markup(_for_page(buffer.getvalue()))


def _for_page(text: str) -> str:
    """matplotlib's file without its head, names of its parts, its own size and colours. All text in it is escaped."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    targets = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in targets else "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"font: ([^;\"']*px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)  # matplotlib before 3.10
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer points of the same outline: the lowest and the highest value of equal spans. NaN stays a gap."""
    if len(steps) <= 2 * _POINTS:
        return steps, values
    places: set[int] = set()
    for span in np.array_split(np.arange(len(steps)), _POINTS):
        inside = values[span]
        if np.isfinite(inside).any():
            places |= {int(span[np.nanargmin(inside)]), int(span[np.nanargmax(inside)])}
        else:
            places.add(int(span[0]))
    order = sorted(places)
    return steps[order], values[order]
