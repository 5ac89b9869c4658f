"""Show of a suite of attacks what accuracies do not: transfer between exits, and how early-exiting survives."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rdi.report import styles, terminal
from rdi.report.files import rendered
from rdi.report.tables import percent, text

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
Curve = tuple[Sequence[float], Sequence[float]]


def transfer(accuracy_EE: Sequence[Sequence[float]], style: str = "simple") -> str:
    """Render accuracy in percent of each exit alone (columns) on images made against each exit (rows)."""
    exits = range(len(accuracy_EE))
    rows = [[f"made on exit {k}", *map(percent, accuracy_EE[k])] for k in exits]
    headers = ["accuracy %", *(f"exit {k}" for k in exits)]
    return terminal.table(headers, rows) if style == "simple" else text(headers, rows, style)


def early_exit(curves: Mapping[str, tuple[Curve, float]], title: str, *, gated: bool = False) -> dict[str, bytes]:
    """Draw the share of samples that have left against the cost spent, one curve per attack with its efficacy.

    curves: attack -> ((cost shares, sample shares), efficacy in [0, 1]).
    gated: the network has gates, which are open in these costs.
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for name, ((x, y), area) in curves.items():
        axis.plot(
            [100 * value for value in x],
            [100 * value for value in y],
            marker="o",
            markersize=3,
            label=f"{styles.display_name(name)}: {area:.2f}",
            **styles.style(name),
        )
    axis.set_xlabel(f"MACs spent{', all gates open' * gated} (% of the full network with all heads)")
    axis.set_ylabel("images that have left (%)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        title="attack, efficacy",
        frameon=False,
        handlelength=3.5,
        fontsize=8,
        title_fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    # of the figure, which has room for it beside the legend, and not of the axes
    figure.suptitle(textwrap.fill(title, 105), fontsize=9)
    return rendered(figure)
