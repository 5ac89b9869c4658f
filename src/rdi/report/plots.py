"""Pictures out of rows: accuracy against cost."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rdi.binomial import wilson
from rdi.pareto import non_dominated
from rdi.report import styles, svg
from rdi.report.files import rendered

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d55", "#8a5fbf", "#b8860b", "#3b3b3b")
PANEL = (4.6, 3.5)
"""Inches of a panel that stands alone."""
RULES = (
    ("mean_macs", "macs_plain", "mean MACs (millions, every head on the way)"),
    ("mean_macs_paper", "macs_plain_paper", "mean MACs by the paper's rule (millions, own head only)"),
)
AXES = {
    "mean_macs": (1e-6, "mean MACs per clean image (millions)"),
    "clean_accuracy": (100, "clean accuracy (%)"),
    "worst_accuracy": (100, "worst-case robust accuracy (%)"),
    "certified_accuracy": (100, "certified accuracy (%)"),
    "certified_macs": (1e-6, "certified largest MACs, mean over images (millions)"),
    "corruption_accuracy": (100, "mean corruption accuracy (%)"),
}
PAIRS = (("mean_macs", "clean_accuracy"), ("mean_macs", "worst_accuracy"), ("worst_accuracy", "clean_accuracy"))
FURTHER = (
    ("mean_macs", "certified_accuracy"),
    ("certified_macs", "certified_accuracy"),
    ("mean_macs", "corruption_accuracy"),
)
"""Pairs that are drawn of the runs that have them, beside the objectives."""
COSTS = ("mean_macs", "certified_macs")
COLUMNS = 3
"""Panels beside one another."""
MARKERS = "os^Dv*"
WHOLE: dict[str, Any] = {"clean": "-", "worst": "--"}
"""Line styles of the banks that are drawn where many runs share a panel."""
DOMINATED = "#c4c4c4"
FEW = 2000
"""Points that a panel draws one by one in SVG and PDF, at most; more are one picture in it."""
NAMED = 12
"""Runs that a picture names, at most: those with the most points on the front. The others share one look."""
OTHERS = "other runs"
ROWS = 4
"""Runs with a row of curves each; more of them are drawn together, clean and worst case only."""


def named(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the runs that a picture of these points names, in their order."""
    runs = list(dict.fromkeys(point["run"] for point in points))
    if len(runs) <= NAMED:
        return runs
    best = Counter(point["run"] for point in points if point["on_front"]).most_common(NAMED)
    return [run for run in runs if run in dict(best)]


def _by_run(points: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The points of every run that is named, then those of all others."""
    found: dict[str, list[Mapping[str, Any]]] = {run: [] for run in named(points)}
    others = [point for point in points if point["run"] not in found]
    for point in points:
        if point["run"] in found:
            found[point["run"]].append(point)
    return {**found, OTHERS: others} if others else found


def projections(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the pairs (x, y) of objectives that all points have, and those that some have: keys of points.csv."""
    missing = {key for pair in PAIRS for key in pair if any(point[key] is None for point in points)}
    there = {key for point in points for key, value in point.items() if value is not None}
    return [pair for pair in PAIRS if missing.isdisjoint(pair)] + [pair for pair in FURTHER if there.issuperset(pair)]


def front(points: Sequence[Mapping[str, Any]], title: str) -> dict[str, bytes]:
    """Draw every two of the objectives against each other, one colour a run that is named, dominated points grey.

    Bars are 95 % intervals of the accuracies on the front.

    points: rows of points.csv, with run, clean_accuracy, worst_accuracy (or None), mean_macs, macs_plain (None:
    unknown), on_front, and those of FURTHER that any run has.
    """
    pairs = projections(points)
    across, down = min(COLUMNS, len(pairs)), -(-len(pairs) // COLUMNS)
    size = (4.8 * across, 0.3 + 3.8 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        _projection(axis, points, *pair)
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    _legend(figure, front_legend(points))
    figure.suptitle(textwrap.fill(title, 58 * across), fontsize=9)
    return rendered(figure)


def front_panels(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Draw the panels of `front` one by one, without a legend: (what is drawn against what, SVG for a page)."""
    found = []
    for x, y in projections(points):
        figure, axis = plt.subplots(figsize=PANEL, layout="constrained")
        _projection(axis, points, x, y)
        found.append((f"{AXES[y][1]} against {AXES[x][1]}", svg.themed(figure)))
        plt.close(figure)
    return found


def front_legend(points: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the legend entries of a front, artists with labels."""
    runs = list(_by_run(points))
    handles = [
        plt.Line2D([], [], linestyle="", marker=_marker(k), color=_colour(k), label=f"{run}: on the front")
        for k, run in enumerate(runs)
    ]
    plain = plt.Line2D([], [], color="#777777", linestyle=":", linewidth=1, label="same backbone without exits")
    interval = plt.Line2D([], [], color="#777777", linewidth=0.7, alpha=0.5, label="95 % interval")
    return [
        *handles,
        plt.Line2D([], [], linestyle="", marker="o", markersize=4, color=DOMINATED, label="dominated"),
        plt.Line2D([], [], color="#777777", linewidth=1, label="best of the two objectives shown"),
        *([plain] if any(point["macs_plain"] is not None for point in points) else []),
        *([interval] if any(point.get("clean_images") for point in points) else []),
    ]


def _colour(run: int) -> str:
    return COLOURS[run % len(COLOURS)]


def _marker(run: int) -> str:
    return MARKERS[run // len(COLOURS) % len(MARKERS)] if run >= len(COLOURS) else MARKERS[run]


def _projection(axis: Any, points: Sequence[Mapping[str, Any]], x: str, y: str) -> None:
    """One panel: the points in two of the objectives, and the staircase of those that are best in these two."""
    (x_scale, x_label), (y_scale, y_label) = AXES[x], AXES[y]
    there = [point for point in points if point[x] is not None and point[y] is not None]
    values = np.array([[point[x], point[y]] for point in there], dtype=float)
    best = values[non_dominated(values, (x not in COSTS, y not in COSTS))]
    best = best[np.argsort(best[:, 0], kind="stable")]
    # between two neighbours only what the worse of them reaches is certain to be reached
    where = "post" if x in COSTS else "pre"
    axis.step(x_scale * best[:, 0], y_scale * best[:, 1], where=where, color="#777777", linewidth=1, alpha=0.7)
    for index, everything in enumerate(_by_run(points).values()):
        mine = [point for point in everything if point[x] is not None and point[y] is not None]
        for kept, marks in ((False, {"color": DOMINATED, "markersize": 4}), (True, {"color": _colour(index)})):
            shown = [point for point in mine if point["on_front"] == kept]
            axis.plot(
                [x_scale * point[x] for point in shown],
                [y_scale * point[y] for point in shown],
                rasterized=len(shown) > FEW,
                **{"linestyle": "", "marker": _marker(index), "markersize": 5, "zorder": 2 + kept, **marks},
            )
        kept_points = [point for point in mine if point["on_front"]]
        axis.errorbar(
            [x_scale * point[x] for point in kept_points],
            [y_scale * point[y] for point in kept_points],
            xerr=_bars(kept_points, x),
            yerr=_bars(kept_points, y),
            fmt="none",
            ecolor=_colour(index),
            elinewidth=0.7,
            alpha=0.35,
        )
        if x in COSTS and mine and mine[0]["macs_plain"] is not None:
            axis.axvline(mine[0]["macs_plain"] / 1e6, color=_colour(index), linestyle=":", linewidth=1)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    grid(axis)


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend below all panels, in as many columns as fit; the figure grows by it."""
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def grid(axis: Any) -> None:
    """Give a panel a grid, and no frame."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def curves(points: Sequence[Mapping[str, Any]], title: str) -> dict[str, bytes]:
    """Draw accuracy against mean MACs by both rules, a colour per attack, a row of panels per run.

    More than ROWS runs share one row: a colour per run, clean drawn through and the worst case dashed.

    points: rows of curves.csv, with run, kind ("anytime": each exit alone; "budgeted": by thresholds), bank,
    accuracy, mean_macs, mean_macs_paper, macs_plain, macs_plain_paper.
    """
    runs = list(dict.fromkeys(point["run"] for point in points))
    if len(runs) > ROWS:
        return _together(points, title)
    banks = curve_banks(points)
    figure, axes = plt.subplots(
        len(runs), 2, figsize=(11.5, 0.3 + 3.9 * len(runs)), squeeze=False, sharey="row", layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        mine = [point for point in points if point["run"] == run]
        for axis, (cost, plain, label) in zip(row, RULES, strict=True):
            _curves(axis, mine, banks, cost, plain)
            axis.set_xlabel(label, fontsize=10)
            grid(axis)
        row[0].set_ylabel("accuracy (%)" if len(runs) == 1 else f"{run}\naccuracy (%)", fontsize=10)
    _legend(figure, curve_legend(banks))
    figure.suptitle(textwrap.fill(title, 130), fontsize=9)
    return rendered(figure)


def _together(points: Sequence[Mapping[str, Any]], title: str) -> dict[str, bytes]:
    """Files of the curves by thresholds of many runs, in two panels."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        if point["kind"] == "budgeted" and point["bank"] in WHOLE:
            runs.setdefault(point["run"], []).append(point)
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.4), sharey="row", layout="constrained")
    for axis, (cost, _, label) in zip(axes, RULES, strict=True):
        for index, mine in enumerate(runs.values()):
            for bank, dash in WHOLE.items():
                ordered = sorted((point for point in mine if point["bank"] == bank), key=lambda point: point[cost])
                x, y = [point[cost] / 1e6 for point in ordered], [100 * point["accuracy"] for point in ordered]
                axis.plot(x, y, linestyle=dash, color=_colour(index), marker=_marker(index), markersize=3, linewidth=1)
        axis.set_xlabel(label, fontsize=10)
        grid(axis)
    axes[0].set_ylabel("accuracy (%)", fontsize=10)
    entries: list[dict[str, Any]] = [
        {"color": _colour(index), "marker": _marker(index), "label": run} for index, run in enumerate(runs)
    ]
    entries += [{"color": "#777777", "linestyle": dash, "label": legend_name(bank)} for bank, dash in WHOLE.items()]
    handles = [plt.Line2D([], [], **entry) for entry in entries]
    _legend(figure, handles)
    figure.suptitle(textwrap.fill(title, 130), fontsize=9)
    return rendered(figure)


def curve_banks(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the banks of the curves: clean, the worst case, every attack."""
    return sorted({point["bank"] for point in points}, key=lambda bank: (bank != "clean", bank != "worst", bank))


def curve_legend(banks: Sequence[str]) -> list[Any]:
    """Return the legend entries of curves, artists with labels."""
    return [
        *(plt.Line2D([], [], label=legend_name(bank), **styles.style(bank)) for bank in banks),
        plt.Line2D([], [], color="#555555", label="by thresholds"),
        plt.Line2D([], [], color="#555555", linestyle=":", marker="o", markersize=4, label="one exit for all"),
        plt.Line2D([], [], color="#777777", linestyle=":", linewidth=1, label="backbone without exits"),
        plt.Line2D([], [], color="#777777", linewidth=7, alpha=0.25, label="95 % interval"),
    ]


def curve_panels(points: Sequence[Mapping[str, Any]], run: str) -> list[tuple[str, str]]:
    """Draw the panels of `curves` of one run, without a legend: (what is drawn against what, SVG for a page)."""
    mine, banks, found = [point for point in points if point["run"] == run], curve_banks(points), []
    for cost, plain, label in RULES:
        figure, axis = plt.subplots(figsize=PANEL, layout="constrained")
        _curves(axis, mine, banks, cost, plain)
        axis.set_xlabel(label.partition(" (")[0] + " (millions)")
        axis.set_ylabel("accuracy (%)")
        grid(axis)
        found.append((f"accuracy (%) against {label}", svg.themed(figure)))
        plt.close(figure)
    return found


def _curves(axis: Any, points: Sequence[Mapping[str, Any]], banks: Sequence[str], cost: str, plain: str) -> None:
    """One panel: the curves of one run."""
    for bank in banks:
        _curve(axis, [point for point in points if point["bank"] == bank], cost, styles.style(bank))
    axis.axvline(points[0][plain] / 1e6, color="#777777", linestyle=":", linewidth=1)


def _curve(axis: Any, points: Sequence[Mapping[str, Any]], cost: str, style: dict[str, Any]) -> None:
    """The curve of one bank, and the exits alone as dots."""
    for kind, changes in {"budgeted": {}, "anytime": {"linestyle": ":", "marker": "o", "markersize": 4}}.items():
        ordered = sorted((p for p in points if p["kind"] == kind), key=lambda p: p[cost])
        x, y = [p[cost] / 1e6 for p in ordered], [100 * p["accuracy"] for p in ordered]
        thin = {"linewidth": 0.9, "alpha": 0.8} if kind == "anytime" else {}
        axis.plot(x, y, **style | changes | thin)
        # of every attack they would hide one another
        if kind == "budgeted" and ordered and ordered[0]["bank"] in WHOLE and all(p.get("images") for p in ordered):
            reach = 100 * np.array([_interval(p["accuracy"], p["images"]) for p in ordered]).reshape(-1, 2)
            axis.fill_between(x, y - reach[:, 0], y + reach[:, 1], color=style["color"], alpha=0.12, linewidth=0)


def legend_name(bank: str) -> str:
    """Return the name of a bank in legends."""
    return "worst of all attacks" if bank == "worst" else styles.display_name(bank)


def _interval(share: float, images: int) -> tuple[float, float]:
    """Return how far the 95 % Wilson interval of a share reaches below and above it."""
    low, high = wilson(round(share * images) / images, images)
    return max(0.0, share - low), max(0.0, high - share)


def _bars(points: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The intervals of an objective as matplotlib draws error bars; None for what is no accuracy, or of no images."""
    images = f"{key.partition('_')[0]}_images"
    if not key.endswith("_accuracy") or any(not point.get(images) for point in points):
        return None
    return 100 * np.array([_interval(point[key], point[images]) for point in points]).reshape(-1, 2).T
