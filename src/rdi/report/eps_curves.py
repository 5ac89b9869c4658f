"""Accuracy against eps for one network: one curve per attack, from the clean images at eps 0 on."""

from __future__ import annotations

from collections.abc import Sequence

from rdi.checks import NORMS
from rdi.records import EvalRecord, WorstRecord
from rdi.report import eps_plots, svg
from rdi.report.page import Cell, Panel, Pictures, Section, Table
from rdi.report.tables import percent
from rdi.report.views import View, every_threat, titled
from rdi.threats import CLEAN, WORST, ThreatModel, display_name, in_order, pixels, threat, without_threat

Curves = dict[str, dict[float, float]]
"""Attack ("worst": right under all of them) -> eps -> accuracy, ascending from 0."""


def curves(records: Sequence[EvalRecord], worst: Sequence[WorstRecord]) -> Curves:
    """Collect every attack that was made at some eps, and the worst case.

    records, worst: of one policy, of threat models of one norm.
    """
    found: Curves = {}
    clean = next((record.accuracy for record in records if record.attack == CLEAN), None)
    attacked = [(ball.eps, record) for record in records if (ball := threat(record.settings)) is not None]
    points = {
        (display_name(without_threat(record.attack), record.threshold, record.settings), eps): record.accuracy
        for eps, record in attacked
    }
    points |= {(WORST, ThreatModel(one.eps).eps): one.accuracy for one in worst}
    names = {name for name, _ in points}
    for name in [*in_order(names - {WORST}), *names & {WORST}]:
        start = {} if clean is None else {0.0: clean}
        found[name] = start | {eps: points[name, eps] for _, eps in sorted(points) if (name, eps) in points}
    return found


def table(records: Sequence[EvalRecord], worst: Sequence[WorstRecord]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows, percent; "-": not attacked at this eps."""
    found = curves(records, worst)
    radii = sorted({eps for curve in found.values() for eps in curve})
    rows = [[name, *(percent(curve[eps]) if eps in curve else "-" for eps in radii)] for name, curve in found.items()]
    return ["attack", *(f"eps {pixels(eps)}" for eps in radii)], rows


def note(worst: Sequence[WorstRecord]) -> str:
    """Say over which attacks the worst case of each eps is, where these differ; nothing where they do not."""
    over = {
        ThreatModel(one.eps).eps: tuple(
            in_order({display_name(without_threat(name), one.threshold) for name in one.attacks})
        )
        for one in worst
    }
    if len(set(over.values())) < 2:
        return ""
    said = "; ".join(f"{pixels(eps)}: {', '.join(over[eps])}" for eps in sorted(over))
    return f"The worst cases are over different attacks, so they do not compare from eps to eps. Eps {said}."


def sections(views: Sequence[View], alone: bool) -> list[Section]:
    """Accuracy against eps of those runs that were attacked at several; no section where there is none."""
    blocks: list[Table | Pictures] = []
    for view, norm in ((view, norm) for view in views for norm in NORMS):
        mine = [
            judged
            for judged in view.judged
            if judged.thresholds.name == view.main.thresholds.name and judged.threat.norm == norm
        ]
        if len(mine) < 2:
            continue
        everything = list({record.attack: record for judged in mine for record in judged.records}.values())
        worst = [judged.worst for judged in mine if judged.worst is not None]
        found = curves(everything, worst)
        policy = f"Exit policy {view.main.thresholds.name}."
        panel = Panel("accuracy (%) against eps (pixels in [0, 1])", eps_plots.panel(found, NORMS[norm]))
        legend = svg.legend(eps_plots.legend(found))
        title = titled("Accuracy against eps", view, alone)
        blocks.append(Pictures(title, f"{policy} {every_threat(view)}.", [panel], legend))
        headers, rows = table(everything, worst)
        cells: list[list[str | Cell]] = [list(row) for row in rows]
        notes = ["Percent; -: not attacked at this eps. Eps 0: the clean images. Worst: right under all of an eps."]
        notes += [differing] if (differing := note(worst)) else []
        blocks.append(Table(titled("The same in figures", view, alone), policy, headers, cells, notes))
    lead = "One network under one attack in balls of several sizes."
    return [Section("eps", "Accuracy against eps", lead, blocks)] if blocks else []
