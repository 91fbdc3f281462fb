"""Matplotlib figures as inline SVG that takes its colours from the page, light or dark."""

import io
import re
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

# Matplotlib writes only fixed colours: these stand for CSS variables, and are replaced by them in the finished SVG.
_COLOURS = {"#0a0b01": "var(--muted)", "#0a0b02": "var(--rule)", "#0a0b03": "var(--first)", "#0a0b04": "var(--second)"}
MUTED, RULE, FIRST, SECOND = _COLOURS
STYLE: dict[Any, Any] = {
    # Text stays text: smaller, and in the page's own font.
    "svg.fonttype": "none",
    # Without a salt of our own, ids would differ from call to call.
    "svg.hashsalt": "report",
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "axes.axisbelow": True,
}


def inline_svg(figure: Figure, title: str) -> Markup:
    """An `<svg>` element whose ids begin with the title, which no other picture of the page may have.

    Args:
        figure: drawn under `matplotlib.rc_context(STYLE)` in the colours of this module; still in that context.
    """
    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    document = text.getvalue()
    svg = document[document.index("<svg") :]
    for fixed, variable in _COLOURS.items():
        svg = svg.replace(fixed, variable)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{prefix}-", svg)
    # The parser of HTML knows the namespaces, and a page without addresses is seen to ask for nothing.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))
