"""Arrange the records of one or more runs as the sections of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rdi.records import CertificateRecord, CorruptionRecord, EvalRecord, FrontRecord, Thresholds, WorstRecord
from rdi.report import corruptions, eps_curves, plots, provenance, svg, tables
from rdi.report.page import Cell, Facts, GallerySection, Panel, Pictures, Section, Table
from rdi.report.views import Judged, Source, View, conditions, every_threat, titled
from rdi.threats import CLEAN, ThreatModel


def sections(
    views: Sequence[View],
    record: FrontRecord,
    points: Sequence[Mapping[str, Any]],
    curve_points: Sequence[Mapping[str, Any]],
    files: Mapping[str, Source],
) -> list[Section]:
    """Arrange all sections of a report.

    points, curve_points: rows of points.csv and curves.csv.
    files: of the report itself.

    views and record are of the same runs in the same order.
    """
    one = len(views) == 1
    return [
        Section("results", "Results", "", [*([_facts(views[0])] if one else []), _overview(views, record)]),
        Section(
            "attacks",
            "Under each attack",
            "Judged by the deployed exit policy. Cost is counted twice: MACs are what a sequential run executes, every "
            "head on the way, convolutions and linear layers; paper MACs are the published rule, own head and "
            "convolutions only.",
            [_evaluation(view, judged, one) for view in views for judged in view.judged],
        ),
        *eps_curves.sections(views, one),
        *corruptions.sections(views, one),
        Section(
            "fronts",
            "Fronts",
            "Every dot is one choice of exit thresholds. A choice is dominated when another is at least as good in all "
            "objectives and better in one.",
            [_front(record, points)],
        ),
        Section(
            "curves",
            "Accuracy against cost",
            "Lines are thresholds fitted for more and less computation, dots are each exit on its own.",
            [_curves(view, made, curve_points, one) for view, made in zip(views, record.conditions, strict=True)],
        ),
        Section(
            "exits",
            "Exits",
            "Where images leave under each attack, and how often each exit alone would have been right.",
            [block(view, one) for view in views for block in (_shares, _each_exit)],
        ),
        Section(
            "gallery",
            "Gallery",
            "Images of the test split as they were judged; below each, what the attack changed.",
            [_gallery(view, one) for view in views if view.gallery is not None],
        ),
        Section(
            "provenance",
            "Provenance",
            "Where every figure on this page comes from. Links lead to the records, relative to this file.",
            provenance.tables_of(views, files),
        ),
    ]


def lead(views: Sequence[View]) -> str:
    """Say in one sentence what the report is about."""
    networks = _listed(f"{view.manifest.backbone} with {view.manifest.exits} exits" for view in views)
    data = _listed(view.manifest.data.name for view in views)
    names = ", ".join(view.path for view in views)
    return f"{networks} on {data}: {names}."


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _facts(view: View) -> Facts:
    main = view.main
    facts = []
    clean = next((record for record in main.records if record.attack == CLEAN), None)
    if clean is not None:
        facts.append(("Clean accuracy", f"{tables.percent(clean.accuracy)} %", f"of {clean.samples:,} test images"))
    if main.worst is not None:
        worst = main.worst
        left = f"; {line}" if (line := tables.excluded(worst)) else ""
        facts.append(
            (
                "Worst-case accuracy",
                f"{tables.percent(worst.accuracy)} %",
                f"{tables.worst_name(worst)} at eps {ThreatModel(worst.eps, worst.norm).size}; {worst.samples:,} "
                f"images, 95 %: {_interval(worst)}{left}",
            )
        )
    if (certificate := main.certificate) is not None:
        facts.append(
            (
                "Certified accuracy",
                f"{tables.percent(certificate.accuracy)} %",
                f"under any attack within eps {ThreatModel(certificate.eps, certificate.norm).size}; "
                f"{certificate.samples:,} images, at most {certificate.mean_macs / 1e6:.2f} M MACs on average",
            )
        )
    for common, _ in view.corrupted[:1]:
        facts.append(
            (
                "Mean corruption accuracy",
                f"{tables.percent(common.accuracy)} %",
                f"{len(common.kinds)} kinds at severity {', '.join(map(str, common.severities))}; {common.samples:,} "
                f"images, {common.mean_macs / 1e6:.2f} M MACs on average, 95 %: {_interval(common)}",
            )
        )
    if clean is not None:
        facts += [
            (
                "MACs saved",
                f"{tables.percent(clean.saving)} %",
                f"{clean.mean_macs / 1e6:.2f} of {view.manifest.costs.macs_plain / 1e6:.2f} M per clean image",
            ),
            (
                "Saved by the paper's rule",
                f"{tables.percent(clean.saving_paper)} %",
                "own head only, convolutions only",
            ),
        ]
    return Facts(facts)


def _interval(record: CorruptionRecord | EvalRecord | WorstRecord) -> str:
    return f"{tables.percent(record.accuracy_low)}-{tables.percent(record.accuracy_high)}"


def _overview(views: Sequence[View], record: FrontRecord) -> Table:
    rows: list[list[str | Cell]] = []
    certified = any(view.main.certificate is not None for view in views)
    corrupted = any(view.corrupted for view in views)
    for view in views:
        main = view.main
        clean = next((one for one in main.records if one.attack == CLEAN), None)
        cost = ["-"] * 4
        if clean is not None:
            cost = [
                f"{clean.mean_macs / 1e6:.2f}",
                tables.percent(clean.saving),
                f"{clean.mean_macs_paper / 1e6:.2f}",
                tables.percent(clean.saving_paper),
            ]
        rows.append(
            [
                view.name,
                main.thresholds.name,
                "-" if clean is None else tables.percent(clean.accuracy),
                "-" if main.worst is None else tables.percent(main.worst.accuracy),
                "-" if main.worst is None else _interval(main.worst),
                *([_accuracy(main.certificate)] if certified else []),
                *([_accuracy(next((one for one, _ in view.corrupted), None))] if corrupted else []),
                *cost,
                f"{100 * record.hypervolume_of[view.name]:.1f}",
                main.sources["worst"].cell() if "worst" in main.sources else view.source.cell(),
            ]
        )
    headers = [
        "run",
        "exit policy",
        "clean %",
        "worst case %",
        "95 % CI",
        *(["certified %"] if certified else []),
        *(["corrupted %"] if corrupted else []),
        "MACs (M)",
        "saved %",
        "paper MACs (M)",
        "paper saved %",
        "hypervolume %",
        "record",
    ]
    notes = [*(note for view in views for note in view.missing)]
    made = "; ".join(dict.fromkeys(conditions(view, view.main) for view in views))
    caption = (
        f"{made}. Worst case: right under every attack, image by image. MACs: mean per clean "
        "image; saved: against the same backbone without exits."
        + (" Certified: right under any attack, for sure." if certified else "")
        + (" Corrupted: mean corruption accuracy." if corrupted else "")
    )
    return Table("Runs", caption, headers, rows, [*notes, _volume(record)])


def _accuracy(record: CertificateRecord | CorruptionRecord | None) -> str:
    return "-" if record is None else tables.percent(record.accuracy)


def _volume(record: FrontRecord) -> str:
    names = ", ".join(name.replace("_", " ").replace("macs", "MACs") for name in record.objectives)
    return (
        f"Hypervolume: share of the box that a run's operating points dominate, in {len(record.objectives)} objectives "
        f"({names}), from the reference point "
        f"({', '.join(f'{value:g}' for value in record.reference[:-1])}, {record.reference[-1] / 1e6:.2f} M MACs: "
        f"{record.reference_rule}) to accuracy 1 at no cost; all runs together {tables.percent(record.hypervolume)} %."
    )


def _evaluation(view: View, judged: Judged, alone: bool) -> Table:
    headers, rows = tables.evaluation_rows(judged.records, judged.worst, judged.certificate)
    names = [record.attack for record in judged.records] + ["worst"] * (judged.worst is not None)
    names += [tables.CERTIFIED] * (judged.certificate is not None)
    linked: list[list[str | Cell]] = [
        [*row, judged.sources[name].cell()] for row, name in zip(rows, names, strict=True)
    ]
    notes = [f"{line[0].upper()}{line[1:]}." for line in tables.predictions(judged.thresholds.expected, judged.records)]
    if facts := tables.facts(judged.thresholds.facts):
        notes = [f"{facts[0].upper()}{facts[1:]}.", *notes]
    caption = (
        f"{conditions(view, judged)}. Exit policy {judged.thresholds.name}, fitted on {judged.thresholds.samples} "
        f"{judged.thresholds.split} images{_values(judged.thresholds)}."
    )
    several = any(one.threat != judged.threat for one in view.judged)
    apart = f", eps {judged.threat.size}" if several else ""
    title = titled(f"Policy {judged.thresholds.name}{apart}", view, alone)
    return Table(title, caption, [*headers, "record"], linked, notes)


def _values(thresholds: Thresholds) -> str:
    if not thresholds.values:
        return ""
    return f": thresholds {', '.join(f'{value:.3g}' for value in thresholds.values)}"


def _front(record: FrontRecord, points: Sequence[Mapping[str, Any]]) -> Pictures:
    panels = [Panel(f"{title}: {_summary(record)}", content) for title, content in plots.front_panels(points)]
    on_front = ", ".join(f"{count} of {name}" for name, count in record.front_of.items())
    caption = (
        f"{tables.conditions(record)}. {record.points} operating points, {record.points_on_front} of them on the "
        f"front of all {len(record.objectives)} objectives ({on_front}). Thresholds are fitted on calibration images "
        "and judged on test images; MACs: every head on the way counted."
    )
    where = "All points with their thresholds are in points.csv, the front in front.csv, beside this page."
    return Pictures("Operating points", caption, panels, svg.legend(plots.front_legend(points)), [where])


def _summary(record: FrontRecord) -> str:
    return f"{record.points_on_front} of {record.points} operating points are on the front"


def _curves(view: View, made: str, curve_points: Sequence[Mapping[str, Any]], alone: bool) -> Pictures:
    panels = [Panel(title, content) for title, content in plots.curve_panels(curve_points, view.name)]
    legend = svg.legend(plots.curve_legend(plots.curve_banks(curve_points)))
    caption = (
        f"{made}. MACs are means over the images of each attack, as they leave under it; in the worst case each image "
        "costs what the costliest attack makes of it."
    )
    return Pictures(titled("Anytime and budgeted", view, alone), caption, panels, legend)


def _shares(view: View, alone: bool) -> Table:
    records = view.main.records
    parts = [f"exit {k} %" for k in range(view.manifest.exits)]
    rows: list[list[str | Cell]] = [
        [
            view.short(record.attack),
            Cell(bar=tuple(record.exit_share)),
            *(tables.percent(share) for share in record.exit_share),
            view.main.sources[record.attack].cell(),
        ]
        for record in records
    ]
    where = "Share of the images that leave at each exit."
    caption = f"{where} {conditions(view, view.main)}, exit policy {view.main.thresholds.name}."
    headers = ["attack", "where images leave", *parts, "record"]
    return Table(titled("Where images leave", view, alone), caption, headers, rows, words=headers[1:2], parts=parts)


def _each_exit(view: View, alone: bool) -> Table:
    headers = ["attack", *(f"exit {k} %" for k in range(view.manifest.exits)), "policy %", "record"]
    rows: list[list[str | Cell]] = [
        [
            view.short(record.attack),
            *(Cell(tables.percent(value), shade=value) for value in record.exit_accuracy),
            Cell(tables.percent(record.accuracy), shade=record.accuracy),
            view.main.sources[record.attack].cell(),
        ]
        for record in view.main.records
    ]
    caption = (
        f"Accuracy if every image left at this exit, and under the exit policy {view.main.thresholds.name}. "
        f"{conditions(view, view.main)}."
    )
    return Table(titled("Accuracy of each exit", view, alone), caption, headers, rows)


def _gallery(view: View, alone: bool) -> GallerySection:
    gallery = view.gallery
    assert gallery is not None, "asked for views with a gallery only"
    notes = []
    if gallery.recrafted:
        names = ", ".join(view.short(name) for name in gallery.recrafted)
        notes.append(f"Crafted anew, from another random start than the images that were judged: {names}.")
    caption = (
        f"The same {len(gallery.classes)} test images under each attack, the class that the policy "
        f"{view.main.thresholds.name} gives them and the exit where they leave. Below: the difference to the clean "
        f"image, -eps black, none grey, +eps white. {every_threat(view)}."
    )
    rows = [(view.short(name), images) for name, images in gallery.images.items()]
    return GallerySection(titled("Images", view, alone), caption, gallery.classes, rows, notes)
