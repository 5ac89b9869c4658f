"""Names of attacks in print and how they are drawn: the same name and the same colour in every picture."""

from __future__ import annotations

import hashlib
import re
from typing import Any

INK, WORST = "#222222", "#d55e00"
SPANS: dict[str, tuple[str, str]] = {
    "single": ("one exit", "#56b4e9"),
    "main": ("last exit", "#e69f00"),
    "average": ("average", "#009e73"),
    "max_avg": ("max-average", "#0072b2"),
    "soft": ("soft exits (adaptive)", "#cc79a7"),
    "confident_wrong": ("confidently wrong (adaptive)", "#aa4499"),
    "routed": ("routed (adaptive)", "#882255"),
    "slowdown": ("slowdown", "#999933"),
    "joint": ("slowdown and error", "#117733"),
}
"""Gradient attacks, as conf/attack calls them -> (in print, colour): Okabe and Ito's colours, then Tol's."""
ALONE: dict[str, tuple[str, str]] = {
    "clean": ("clean", INK),
    "worst": ("worst case", WORST),
    "targeted": ("multi-targeted (adaptive)", "#ddcc77"),
    "square": ("Square", "#777777"),
    "autoattack": ("AutoAttack", "#332288"),
    "autoattack_mean": ("AutoAttack, mean of exits", "#332288"),
    "autoattack_exits": ("AutoAttack", "#332288"),
    "transfer": ("transfer", "#44aa99"),
    "min_max": ("PGD, min-max over exits", "#0072b2"),
    "ensemble": ("PGD, mean of logits", "#009e73"),
}
SOLVERS = {"": "PGD", "fgsm": "FGSM", "apgd": "APGD", "apgd_dlr": "APGD-DLR", "wrm": "WRM"}
UNKNOWN = ("#7a5c3a", "#b8860b", "#8a5fbf")
"""Colours of attacks that are not ours, in the order of their names."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 1, 1, 1, 1, 1)))
_NAME = re.compile(
    rf"(?P<span>{'|'.join(SPANS)})(_(?P<solver>{'|'.join(filter(None, SOLVERS))}))?(_exit(?P<exit>\d+))?", re.ASCII
)


def display_name(attack: str) -> str:
    """Return the name of an attack as a paper prints it.

    attack: as its bank is called; what it aims at follows in brackets.
    """
    base, at, apart = attack.partition("@")
    known, exit_of = ALONE.get(base), re.fullmatch(r"(autoattack_exits|square|\w+?)_exit(\d+)", base, re.ASCII)
    if known:
        name = known[0]
    elif found := _NAME.fullmatch(base):
        span = SPANS[found["span"]][0] if found["exit"] is None else f"exit {found['exit']}"
        name = f"{SOLVERS[found['solver'] or '']}, {span}"
    elif exit_of:
        name = f"{ALONE.get(exit_of[1], (exit_of[1].replace('_', ' '), ''))[0]}, exit {exit_of[2]}"
    else:
        name = base.replace("_", " ")
    return f"{name} ({apart.replace('@', ', ')})" if at else name


def style(attack: str) -> dict[str, Any]:
    """Return how an attack is drawn, as keywords of matplotlib's plot: its colour, its dashes, its width.

    The colour says what is attacked, the dashes by which steps, or at which exit.
    """
    base = attack.partition("@")[0]
    if base in ("clean", "worst"):
        return {"color": ALONE[base][1], "linestyle": "-", "linewidth": 2.0}
    found = _NAME.fullmatch(base)
    if found and found["exit"] is not None:
        return _line(SPANS[found["span"]][1], int(found["exit"]) + 7 * list(SOLVERS).index(found["solver"] or ""))
    if found:
        return _line(SPANS[found["span"]][1], list(SOLVERS).index(found["solver"] or ""))
    stem, _, exit_k = base.partition("_exit")
    if stem in ALONE:
        return _line(ALONE[stem][1], int(exit_k) if exit_k.isdecimal() else list(ALONE).index(stem))
    number = int(hashlib.sha256(base.encode()).hexdigest(), 16)
    return _line(UNKNOWN[number % len(UNKNOWN)], number // len(UNKNOWN) % 10)


def _line(colour: str, dash: int) -> dict[str, Any]:
    return {
        "color": colour,
        "linestyle": DASHES[dash % len(DASHES)],
        "linewidth": max(0.5, 1.5 - 0.3 * (dash // len(DASHES))),
    }
