"""What a suite of attacks shows besides its accuracies: transfer between exits, and how early-exiting survives."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rdi.report.tables import percent, text

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
Curve = tuple[Sequence[float], Sequence[float]]
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d55", "#8a5fbf", "#b8860b", "#1fa3a3", "#d9779f", "#7a5c3a")
DASHES = ("-", "--", ":")


def transfer(accuracy_EE: Sequence[Sequence[float]], style: str = "simple") -> str:
    """Table: accuracy in percent of each exit alone (columns) on images made against each exit (rows)."""
    exits = range(len(accuracy_EE))
    rows = [[f"made on exit {k}", *map(percent, accuracy_EE[k])] for k in exits]
    return text(["accuracy %", *(f"exit {k}" for k in exits)], rows, style)


def early_exit(curves: Mapping[str, tuple[Curve, float]], title: str) -> bytes:
    """PNG: share of samples that have left against the cost spent, one curve per attack with its efficacy.

    curves: attack -> ((cost shares, sample shares), efficacy in [0, 1]).
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    others = [name for name in curves if name != "clean"]
    for name, ((x, y), area) in curves.items():
        place = others.index(name) if name in others else 0
        axis.plot(
            [100 * value for value in x],
            [100 * value for value in y],
            marker="o",
            markersize=3,
            label=f"{name} {area:.2f}",
            color="#222222" if name == "clean" else COLOURS[place % len(COLOURS)],
            linestyle="-" if name == "clean" else DASHES[place // len(COLOURS) % len(DASHES)],
            linewidth=2.2 if name == "clean" else 1.4,
        )
    axis.set_xlabel("MACs spent (% of the full network with all heads)")
    axis.set_ylabel("images that have left (%)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        title="attack, efficacy",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    axis.set_title(title, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()
