"""Pictures out of rows: accuracy against cost."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#1b6ca8", "#c8553d", "#2a9d55", "#8a5fbf", "#b8860b", "#3b3b3b")
PANELS = (("clean_accuracy", "clean accuracy (%)"), ("worst_accuracy", "worst-case robust accuracy (%)"))


def front(points: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """PNG: clean and robust accuracy against mean MACs, one colour a run, dominated points grey.

    points: rows of points.csv, with run, clean_accuracy, worst_accuracy (or None), mean_macs, macs_plain, on_front.
    """
    panels = [panel for panel in PANELS if any(point[panel[0]] is not None for point in points)]
    runs = list(dict.fromkeys(point["run"] for point in points))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.4), squeeze=False, layout="constrained")
    for axis, (key, label) in zip(axes[0], panels, strict=True):
        for index, run in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            mine = [point for point in points if point["run"] == run and point[key] is not None]
            kept = sorted((p for p in mine if p["on_front"]), key=lambda p: p["mean_macs"])
            rest = [p for p in mine if not p["on_front"]]
            axis.scatter([p["mean_macs"] / 1e6 for p in rest], [100 * p[key] for p in rest], s=16, c="#c4c4c4")
            axis.plot(
                [p["mean_macs"] / 1e6 for p in kept],
                [100 * p[key] for p in kept],
                linestyle="",  # a front in three objectives is no line in two of them
                marker="o",
                markersize=5,
                color=colour,
                label=f"{run}: on the front of all objectives",
            )
            if mine:
                axis.axvline(mine[0]["macs_plain"] / 1e6, color=colour, linestyle=":", linewidth=1)
        axis.set_xlabel("mean MACs per clean image (millions, all heads on the way counted)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].plot([], [], color="#777777", linestyle=":", linewidth=1, label="same backbone without exits")
    axes[0][0].scatter([], [], s=16, c="#c4c4c4", label="dominated")
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(textwrap.fill(title, 120), fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()
