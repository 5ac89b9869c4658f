"""Accuracy and cost on corrupted images as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rdi.records import CorruptionRecord
from rdi.report import tables
from rdi.report.page import Cell, Section, Table
from rdi.report.views import View, titled

MEAN = "mean"


def rows(record: CorruptionRecord) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: a kind each, accuracy in percent over severities and at each; last their mean."""
    headers = [
        "corruption",
        "accuracy %",
        *(f"at {severity}" for severity in record.severities),
        "MACs (M)",
    ]
    rows = [
        _row(kind, right, macs)
        for kind, right, macs in zip(record.kinds, record.accuracies, record.mean_macs_of, strict=True)
    ]
    columns = [_mean(column) for column in zip(*record.accuracies, strict=True)]
    return headers, [*rows, _row(MEAN, columns, [record.mean_macs])]


def caption(record: CorruptionRecord) -> str:
    """Say which images these are, the mean corruption accuracy, and what an image costs."""
    return (
        f"{record.samples:,} {record.split} images of {record.data} under {len(record.kinds)} common corruptions at "
        f"severity {', '.join(map(str, record.severities))} ({record.source}, seed {record.seed}), exit policy "
        f"{record.threshold}: mean corruption accuracy {tables.percent(record.accuracy)} % (95 %: "
        f"{tables.percent(record.accuracy_low)}-{tables.percent(record.accuracy_high)}) at "
        f"{record.mean_macs / 1e6:.2f} M MACs per image, saved {tables.percent(record.saving)} %; leave at exit "
        f"{'/'.join(map(str, range(len(record.exit_share))))}: "
        f"{'/'.join(f'{100 * share:.0f}' for share in record.exit_share)} %"
    )


def sections(views: Sequence[View], alone: bool) -> list[Section]:
    """Return the section on corrupted images; none where no run was judged on any."""
    blocks = [
        Table(
            titled(f"Policy {record.threshold}", view, alone),
            f"{text[0].upper()}{text[1:]}.",
            [*headers, "record"],
            [[*row, source.cell() if row[0] == MEAN else Cell("")] for row in made],
        )
        for view in views
        for record, source in view.corrupted
        for text, (headers, made) in [(caption(record), rows(record))]
    ]
    words = (
        "Common corruptions (Hendrycks and Dietterich, ICLR 2019): no attack, and no part of any worst case. Mean "
        "corruption accuracy: over kinds and severities."
    )
    return [Section("corruptions", "Corrupted images", words, blocks)] if blocks else []


def _row(name: str, right: Sequence[float], macs: Sequence[float]) -> list[str]:
    return [name, tables.percent(_mean(right)), *map(tables.percent, right), f"{_mean(macs) / 1e6:.2f}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
