"""Pictures of accuracy against eps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt

from rdi.report import styles, svg
from rdi.report.plots import PANEL, grid, legend_name


def panel(curves: Mapping[str, Mapping[float, float]], norm: str = "L-infinity") -> str:
    """Draw accuracy against eps, a line per attack, as SVG for a page.

    curves: attack -> eps -> accuracy, a fraction.
    norm: of eps, as people write it.
    """
    figure, axis = plt.subplots(figsize=PANEL, layout="constrained")
    for name, curve in curves.items():
        axis.plot(
            list(curve),
            [100 * value for value in curve.values()],
            marker="o",
            markersize=4,
            **styles.style(name),
        )
    axis.set_xlabel(f"eps ({norm}, pixels in [0, 1])")
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(bottom=0)
    grid(axis)
    drawn = svg.themed(figure)
    plt.close(figure)
    return drawn


def legend(curves: Mapping[str, object]) -> list[Any]:
    """Return the legend entries of `panel`, artists with labels."""
    return [
        plt.Line2D([], [], label=legend_name(name), marker="o", markersize=4, **styles.style(name)) for name in curves
    ]
