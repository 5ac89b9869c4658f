"""Tables out of records: text for the terminal, Markdown and CSV. Accuracies in percent, MACs in millions (10^6)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rdi.records import EvalRecord, WorstRecord

HEADERS = (
    "attack",
    "images",
    "accuracy %",
    "95 % CI",
    "MACs (M)",
    "saved %",
    "paper MACs (M)",
    "paper saved %",
)


def percent(value: float) -> str:
    """Fraction -> percent with one decimal."""
    return f"{100 * value:.1f}"


def evaluation_rows(records: Sequence[EvalRecord], worst: WorstRecord | None) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: one per attack, then the per-sample worst case; exits are 0-based, as everywhere."""
    exits = len(records[0].exit_share)
    headers = [*HEADERS, f"leave at exit {'/'.join(map(str, range(exits)))} %"]
    rows = [
        [
            record.attack.split("@")[0],
            str(record.samples),
            percent(record.accuracy),
            f"{percent(record.accuracy_low)}-{percent(record.accuracy_high)}",
            f"{record.mean_macs / 1e6:.2f}",
            percent(record.saving),
            f"{record.mean_macs_paper / 1e6:.2f}",
            percent(record.saving_paper),
            "/".join(f"{100 * share:.0f}" for share in record.exit_share),
        ]
        for record in records
    ]
    if worst is not None:
        interval = f"{percent(worst.accuracy_low)}-{percent(worst.accuracy_high)}"
        blank = [""] * (len(headers) - 4)
        rows.append([f"worst of {len(worst.attacks)}", str(worst.samples), percent(worst.accuracy), interval, *blank])
    return headers, rows


def text(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str = "simple", align: str = "right") -> str:
    """A table; style is one of tabulate's ("simple" for terminals, "github" for Markdown, "latex").

    align: of all columns but the first, which is "left".
    """
    return tabulate(
        rows,
        headers=headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=("left", *[align] * (len(headers) - 1)),
    )


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header line out of rows that share their keys."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
