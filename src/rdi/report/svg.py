"""Pictures as SVG that takes its colours and its font from the page around it, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

THEME = {
    "#000000": "--ink",
    "#222222": "--ink",
    "#3b3b3b": "--ink",
    "#555555": "--soft",
    "#777777": "--soft",
    "#b0b0b0": "--line",
    "#c4c4c4": "--faint",
    "#1b6ca8": "--blue",
    "#c8553d": "--orange",
    "#c1272d": "--red",
    "#2a9d55": "--green",
    "#8a5fbf": "--violet",
    "#b8860b": "--gold",
    "#1fa3a3": "--teal",
    "#d9779f": "--pink",
    "#7a5c3a": "--brown",
    "#d55e00": "--worst",
    "#56b4e9": "--sky",
    "#e69f00": "--amber",
    "#009e73": "--sea",
    "#0072b2": "--deep",
    "#cc79a7": "--rose",
    "#aa4499": "--plum",
    "#882255": "--wine",
    "#999933": "--olive",
    "#117733": "--pine",
    "#332288": "--indigo",
    "#44aa99": "--mint",
    "#ddcc77": "--sand",
}
"""Colours that pictures are drawn in -> CSS variables that stand for them; the page gives those their values."""
OPTIONS: Any = {"svg.fonttype": "none", "svg.hashsalt": "rdi", "path.simplify": False}


def themed(figure: Any) -> str:
    """Render a matplotlib figure as an `<svg>` element for use inside HTML; the same figure gives the same text.

    Without fonts of its own, outside references or a size: it fills the width that it is given. Its ids are unique
    to its content, so that several can stand on one page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(OPTIONS):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = text[text.index("<svg") :]
    # what only files need: a style for everything, a size, names of groups
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    head, rest = text.split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    rest = re.sub(r'(xlink:href="#|url\(#|id=")', rf"\g<1>{mark}-", rest).replace("xlink:href", "href")
    rest = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", rest)
    for colour, name in THEME.items():
        rest = rest.replace(colour, f"var({name})")
    # black is what SVG draws in when nothing is said
    return f'<svg {box} fill="currentColor" stroke-linejoin="round">{rest}'.strip()


def swatch(artist: Any) -> str:
    """Render a legend entry (a Line2D) as a small `<svg>`: its line, dashes and marker."""
    figure = Figure(figsize=(0.44, 0.16))
    line = Line2D([0.06, 0.5, 0.94], [0.5, 0.5, 0.5], markevery=[1])
    line.update_from(artist)
    line.set_markevery([1])
    line.set_transform(figure.transFigure)
    figure.add_artist(line)
    return themed(figure)


def legend(artists: Iterable[Any]) -> list[tuple[str, str]]:
    """Render legend entries as (swatch, label)."""
    return [(swatch(artist), str(artist.get_label())) for artist in artists]
