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
RULES = (
    ("mean_macs", "macs_plain", "mean MACs (millions, every head on the way)"),
    ("mean_macs_paper", "macs_plain_paper", "mean MACs by the paper's rule (millions, own head only)"),
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)))
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
    return _png(figure)


def curves(points: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """PNG: accuracy against mean MACs by both rules, a colour per attack, a row of panels per run.

    points: rows of curves.csv, with run, kind ("anytime": each exit alone; "budgeted": by thresholds), bank,
    accuracy, mean_macs, mean_macs_paper, macs_plain, macs_plain_paper.
    """
    runs = list(dict.fromkeys(point["run"] for point in points))
    banks = sorted({point["bank"] for point in points}, key=lambda bank: (bank != "clean", bank != "worst", bank))
    figure, axes = plt.subplots(
        len(runs), 2, figsize=(11.5, 0.8 + 3.9 * len(runs)), squeeze=False, sharey="row", layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        mine = [point for point in points if point["run"] == run]
        for axis, (cost, plain, label) in zip(row, RULES, strict=True):
            for index, bank in enumerate(banks):
                _curve(axis, [point for point in mine if point["bank"] == bank], cost, _style(bank, index))
            axis.axvline(mine[0][plain] / 1e6, color="#777777", linestyle=":", linewidth=1)
            axis.set_xlabel(label, fontsize=10)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("accuracy (%)" if len(runs) == 1 else f"{run}\naccuracy (%)", fontsize=10)
    handles = [plt.Line2D([], [], label=_legend(bank), **_style(bank, index)) for index, bank in enumerate(banks)]
    handles += [
        plt.Line2D([], [], color="#555555", label="by thresholds"),
        plt.Line2D([], [], color="#555555", linestyle=":", marker="o", markersize=4, label="one exit for all"),
        plt.Line2D([], [], color="#777777", linestyle=":", linewidth=1, label="backbone without exits"),
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(title, 105), fontsize=9)
    return _png(figure)


def _curve(axis: Any, points: Sequence[Mapping[str, Any]], cost: str, style: dict[str, Any]) -> None:
    """The curve of one bank, and the exits alone as dots."""
    for kind, changes in {"budgeted": {}, "anytime": {"linestyle": ":", "marker": "o", "markersize": 4}}.items():
        ordered = sorted((p for p in points if p["kind"] == kind), key=lambda p: p[cost])
        x, y = [p[cost] / 1e6 for p in ordered], [100 * p["accuracy"] for p in ordered]
        thin = {"linewidth": 0.9, "alpha": 0.8} if kind == "anytime" else {}
        axis.plot(x, y, **style | changes | thin)


def _style(bank: str, index: int) -> dict[str, Any]:
    """Clean black, the worst case red, attacks in other colours; dashes tell apart those of the same colour."""
    if bank in ("clean", "worst"):
        return {"color": "#222222" if bank == "clean" else "#c1272d", "linestyle": "-", "linewidth": 2.0}
    others = ("#1b6ca8", "#2a9d55", "#b8860b", "#8a5fbf", "#1fa3a3", "#d9779f", "#7a5c3a")
    dash = DASHES[index // len(others) % len(DASHES)]
    return {"color": others[index % len(others)], "linestyle": dash, "linewidth": 1.4}


def _legend(bank: str) -> str:
    return "worst of all attacks" if bank == "worst" else bank


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    plt.close(figure)
    return stream.getvalue()
