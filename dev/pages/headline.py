"""The headline: what networks reach on clean images and in the worst case, and what that costs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pages.networks import Network
from rdi.report import styles, tables
from rdi.report.files import OPTIONS
from rdi.threats import CLEAN, strength

COLOURS = {"released": "#c8553d", "trained here": "#1b6ca8", "plain, trained here": "#777777"}
"""Origin of the weights -> colour."""
MARKERS = "osD^vP*X"
"""Markers of the networks of one panel, in their order."""
CLOSE = 0.04
"""Share of the plain backbone's MACs within which the figures of two networks would overlap."""
WORST = "worst case, with 95 % interval"
HEADERS = (
    "network",
    "weights",
    "data",
    "clean %",
    "worst %",
    "95 % CI",
    "worst single attack",
    "saved %",
    "under slowdown %",
    "MACs (M)",
    "images, attacked",
    "attacks",
    "seed",
)
CONDITIONS = 3
"""The last columns, which say how a network was judged."""
LEGEND = (
    "Worst: right under every attack, image by image. Saved: honest MACs, mean per image, every head on the way "
    "counted, against the same backbone without exits; under slowdown: when an attack aims at cost. -: not attacked so."
)


def point(network: Network) -> dict[str, Any]:
    """Return the figures of a network as plain values: accuracies and savings are fractions, MACs means per image.

    slowdown_*: under the attack `slowdown`, None where it was not run.

    Raises ValueError as `Network.check`.
    """
    network.check()
    clean, slow, worst = network.record(CLEAN), network.find("slowdown"), network.worst
    attacked = {name: value for name, value in network.accuracy.items() if name != CLEAN}
    hardest = min(attacked, key=lambda name: attacked[name])
    return {
        "network": network.folder.name,
        "weights": network.origin,
        "data": network.manifest.data.name,
        "backbone": network.manifest.backbone,
        "policy": network.thresholds.name,
        "seed": network.manifest.seed,
        "clean_accuracy": clean.accuracy,
        "clean_images": clean.samples,
        "worst_accuracy": worst.accuracy,
        "worst_low": worst.accuracy_low,
        "worst_high": worst.accuracy_high,
        "worst_of": len(worst.attacks),
        "attacked_images": worst.samples,
        "hardest_attack": hardest,
        "hardest_accuracy": attacked[hardest],
        "strength": strength(record.settings for record in network.records),
        "mean_macs": clean.mean_macs,
        "macs_plain": network.manifest.costs.macs_plain,
        "saving": clean.saving,
        "slowdown_macs": slow and slow.mean_macs,
        "slowdown_saving": slow and slow.saving,
    }


def table(points: Sequence[Mapping[str, Any]], style: str) -> str:
    """Render the headline table.

    points: of `point`.
    style: github or latex_booktabs.
    """
    rows = [
        [
            one["network"],
            one["weights"],
            one["data"],
            tables.percent(one["clean_accuracy"]),
            f"{tables.percent(one['worst_accuracy'])} (of {one['worst_of']})",
            f"{tables.percent(one['worst_low'])}-{tables.percent(one['worst_high'])}",
            f"{styles.display_name(one['hardest_attack']) if 'latex' in style else one['hardest_attack']} "
            f"{tables.percent(one['hardest_accuracy'])}",
            tables.percent(one["saving"]),
            "-" if one["slowdown_saving"] is None else tables.percent(one["slowdown_saving"]),
            f"{one['mean_macs'] / 1e6:.1f}",
            f"{one['clean_images']:,}, {one['attacked_images']:,}",
            one["strength"],
            str(one["seed"]),
        ]
        for one in points
    ]
    # on a page the conditions stand below the table; LaTeX is copied without them
    columns = len(HEADERS) - CONDITIONS if style == "github" else len(HEADERS)
    return tables.text(HEADERS[:columns], [row[:columns] for row in rows], style)


def conditions(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how the networks were judged, a line for those that were judged alike.

    points: of `point`.
    """
    alike: dict[str, list[str]] = {}
    for one in points:
        how = f"{one['data']}, {one['attacked_images']:,} images, {one['strength']}, seed {one['seed']}"
        said = f"{one['network']} ({one['clean_images']:,} clean images, exit policy {one['policy']})"
        alike.setdefault(how, []).append(said)
    return [f"- {how}: {', '.join(said)}." for how, said in alike.items()]


def files(points: Sequence[Mapping[str, Any]]) -> dict[str, str | bytes]:
    """Return file name -> content: the points, the table in LaTeX, the picture as SVG and PDF."""
    content = json.dumps(list(points), indent=1) + "\n"
    mark = hashlib.sha256(content.encode()).hexdigest()
    latex = f"{table(points, 'latex_booktabs')}\n% {LEGEND}\n"
    return {"headline.json": content, "headline.tex": latex, **picture(points, mark)}


def picture(points: Sequence[Mapping[str, Any]], mark: str) -> dict[str, bytes]:
    """Draw accuracy against honest MACs, a panel for each data set and threat model.

    `mark` is kept in the files, to know them by. A network is two points above one another: clean accuracy, hollow,
    and worst case, filled. A line to the right of the worst case ends at the cost under slowdown.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for one in points:
        panels.setdefault(f"{one['data']}, {one['strength'].partition(',')[0]}", []).append(one)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.6), squeeze=False, layout="constrained")
    for axis, (title, mine) in zip(axes[0], panels.items(), strict=True):
        close = CLOSE * max(one["macs_plain"] for one in mine)
        for marker, one in zip(_cycled(len(mine)), mine, strict=True):
            _network(
                axis,
                one,
                marker,
                any(0 <= other["mean_macs"] - one["mean_macs"] < close for other in mine if other is not one),
            )
        for macs in {one["macs_plain"] for one in mine}:
            axis.axvline(macs / 1e6, color="#777777", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("mean MACs per image (millions, every head on the way)")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 109)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="best", fontsize=8, frameon=False)
    axes[0][0].set_ylabel("accuracy (%)")
    key = [
        plt.Line2D([], [], linestyle="", marker="o", markerfacecolor="none", color=styles.INK, label="clean"),
        plt.Line2D([], [], linestyle="", marker="o", color=styles.INK, label=WORST),
        plt.Line2D([], [], color=styles.INK, marker="|", markevery=[1], linewidth=1, label="cost under slowdown"),
        plt.Line2D([], [], color="#777777", linestyle=":", linewidth=1, label="backbone without exits"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    about = {"svg": {"Date": None, "Description": mark}, "pdf": {"CreationDate": None, "Subject": mark}}
    found = {}
    with matplotlib.rc_context(OPTIONS):
        for kind, metadata in about.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, metadata=metadata)
            found[f"headline.{kind}"] = stream.getvalue()
    plt.close(figure)
    return found


def _cycled(count: int) -> str:
    return (MARKERS * (1 + count // len(MARKERS)))[:count]


def _network(axis: Any, one: Mapping[str, Any], marker: str, beside: bool) -> None:
    """Draw a network; beside: its figures stand to the left of its points, another network is close to the right."""
    colour, macs = COLOURS[one["weights"]], one["mean_macs"] / 1e6
    clean, worst = 100 * one["clean_accuracy"], 100 * one["worst_accuracy"]
    bars = [[worst - 100 * one["worst_low"]], [100 * one["worst_high"] - worst]]
    axis.plot([macs, macs], [worst, clean], color=colour, linewidth=0.8, alpha=0.5)
    axis.plot([macs], [clean], linestyle="", marker=marker, color=colour, markerfacecolor="white", markersize=7)
    for value, at, offset, side in ((clean, clean, 6, "bottom"), (worst, 100 * one["worst_low"], -4, "top")):
        if beside:
            place: dict[str, Any] = {"xy": (macs, value), "xytext": (-7, 0), "ha": "right", "va": "center"}
        else:
            place = {"xy": (macs, at), "xytext": (0, offset), "ha": "center", "va": side}
        axis.annotate(f"{value:.1f}", textcoords="offset points", size=8, **place)
    axis.errorbar([macs], [worst], yerr=bars, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    label = f"{one['network']} ({one['weights']})"
    axis.plot([macs], [worst], linestyle="", marker=marker, color=colour, markersize=7, label=label)
    if one["slowdown_macs"] is not None:
        slow = one["slowdown_macs"] / 1e6
        axis.plot([macs, slow], [worst, worst], color=colour, linewidth=1, marker="|", markevery=[1], markersize=9)
