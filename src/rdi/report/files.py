"""A figure as files: PNG to look at, SVG and PDF to print; the same figure gives the same bytes."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

KINDS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 130},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""File name suffix -> how it is written."""
# letters stay letters, that a journal's tools can search and edit
OPTIONS: Any = {"svg.fonttype": "none", "svg.hashsalt": "rdi", "pdf.fonttype": 42}


def rendered(figure: Any) -> dict[str, bytes]:
    """Render a figure: suffix -> content of its files. The figure is closed."""
    found = {}
    with matplotlib.rc_context(OPTIONS):
        for kind, how in KINDS.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, **how)
            figure.set_layout_engine("none")  # laid out once, as drawing is slow, and the same in every file
            found[kind] = stream.getvalue()
    plt.close(figure)
    return found
