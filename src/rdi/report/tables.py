"""Tables out of records: text for the terminal, Markdown and CSV. Accuracies in percent, MACs in millions (10^6)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rdi.records import CertificateRecord, Costs, EvalRecord, Expected, FrontRecord, Plain, WorstRecord
from rdi.text import cell, markdown
from rdi.threats import display_name

HEADERS = (
    "attack",
    "images",
    "accuracy %",
    "95 % CI",
    "MACs (M)",
    "saved %",
    "paper MACs (M)",
    "paper saved %",
    "efficacy",
)


PART = 1000
"""Rows of a CSV that are formatted at once."""
PAPER = HEADERS.index("paper MACs (M)")
"""Index of the first column of the second half of the table."""


def percent(value: float) -> str:
    """Format a fraction as percent with one decimal."""
    return f"{100 * value:z.1f}"  # z: never -0.0


CERTIFIED = "certified"
"""Name of a certificate's row, among those of attacks."""


def evaluation_rows(
    records: Sequence[EvalRecord], worst: WorstRecord | None, certificate: CertificateRecord | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows: one per attack, the per-sample worst case, the certificate; exits are 0-based.

    Costs of the certificate are the most that images may cost, its shares those that may leave at each exit.
    """
    exits = len(records[0].exit_share)
    headers = [*HEADERS, f"leave at exit {'/'.join(map(str, range(exits)))} %"]
    rows = [
        [
            display_name(record.attack, record.threshold, record.settings),
            str(record.samples),
            percent(record.accuracy),
            f"{percent(record.accuracy_low)}-{percent(record.accuracy_high)}",
            f"{record.mean_macs / 1e6:.2f}",
            percent(record.saving),
            f"{record.mean_macs_paper / 1e6:.2f}",
            percent(record.saving_paper),
            "-" if record.efficacy is None else f"{record.efficacy:.2f}",
            "/".join(f"{100 * share:.0f}" for share in record.exit_share),
        ]
        for record in records
    ]
    if worst is not None:
        interval = f"{percent(worst.accuracy_low)}-{percent(worst.accuracy_high)}"
        blank = [""] * (len(headers) - 4)
        rows.append([worst_name(worst), str(worst.samples), percent(worst.accuracy), interval, *blank])
    if certificate is not None:
        rows.append(
            [
                CERTIFIED,
                str(certificate.samples),
                percent(certificate.accuracy),
                f"{percent(certificate.accuracy_low)}-{percent(certificate.accuracy_high)}",
                f"{certificate.mean_macs / 1e6:.2f}",
                percent(certificate.saving),
                *[""] * 3,
                "/".join(f"{100 * share:.0f}" for share in certificate.exit_may),
            ]
        )
    return headers, rows


def worst_name(worst: WorstRecord) -> str:
    """Return the name of a worst case, as worst of 4, or worst of 4 + 5 made for other thresholds."""
    others = f" + {len(worst.others)} made for other thresholds" if worst.others else ""
    return f"worst of {len(worst.attacks) - len(worst.others)}{others}"


def excluded(worst: WorstRecord | None) -> str:
    """Name the banks that a worst case leaves out for their fewer images, and what they would make of it."""
    if worst is None or not worst.fewer:
        return ""
    names = ", ".join(display_name(name, worst.threshold) for name in worst.fewer)
    line = f"{worst_name(worst)} is on {worst.samples:,} images; without {names}, made of fewer"
    if worst.common_accuracy is None or worst.common_samples is None:
        return line
    images = f"{worst.common_samples:,} common image{'' if worst.common_samples == 1 else 's'}"
    return f"{line}: all of them together leave {percent(worst.common_accuracy)} % of {images}"


def footnote(costs: Costs) -> str:
    """Say below a table what the columns of evaluation_rows are."""
    return (
        "\nexit 0 is the first; MACs: mean per image, every head on the way counted\n"
        f"saved: of the backbone without exits, {costs.macs_plain / 1e6:.2f} M; to the last exit: "
        f"{costs.macs[-1] / 1e6:.2f} M\n"
        "paper MACs, paper saved: by the published rule, own head, convolutions only\n"
        "efficacy: area under the early-exit curve, 0 to 1: high where images leave early"
    )


def evaluation_figures(records: Sequence[EvalRecord], worst: WorstRecord | None) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of `evaluation_rows` as numbers, in the units of the records."""
    keys = ["samples", "accuracy", "accuracy_low", "accuracy_high"]
    more = ["mean_macs", "saving", "mean_macs_paper", "saving_paper", "efficacy"]
    shares = [f"exit_share/exit{k}" for k in range(len(records[0].exit_share))]
    rows: list[list[Any]] = [
        [record.attack, *(getattr(record, key) for key in [*keys, *more]), *record.exit_share] for record in records
    ]
    if worst is not None:
        rows.append(["worst", *(getattr(worst, key) for key in keys), *[None] * (len(more) + len(shares))])
    return ["attack", *keys, *more, *shares], rows


def predictions(expected: Mapping[str, Expected], records: Sequence[EvalRecord]) -> list[str]:
    """Return one line per bank: what the calibration split predicted for accuracy and cost, and whether it held."""
    found = {record.attack: record for record in records}
    lines = []
    for name, prediction in expected.items():
        accuracy = f"{percent(prediction.accuracy_low)}-{percent(prediction.accuracy_high)} %"
        cost = f"{prediction.mean_macs_low / 1e6:.2f}-{prediction.mean_macs_high / 1e6:.2f} M MACs"
        if (test := found.get(name)) is not None:
            accuracy += f" ({in_interval(test.accuracy, prediction.accuracy_low, prediction.accuracy_high)})"
            cost += f" ({in_interval(test.mean_macs, prediction.mean_macs_low, prediction.mean_macs_high)})"
        lines.append(f"expected from {prediction.samples} calibration images (95 %), {name}: {accuracy}, {cost}")
    return lines


MOST = 8
"""Conditions and runs that a caption lists, at most."""


def conditions(record: FrontRecord) -> str:
    """Name data, images and attacks of the runs of a front; said once where runs have them in common."""
    return shortened(list(dict.fromkeys(record.conditions)), "; ", "summary.json")


def shortened(parts: Sequence[str], between: str, where: str) -> str:
    """Join the first parts, and say how many more there are and in which file."""
    more = len(parts) - MOST
    return between.join(parts) if more <= 0 else f"{between.join(parts[:MOST])}{between}and {more} more, see {where}"


def hypervolume(record: FrontRecord) -> str:
    """Say in two or three lines how much of the box the points dominate, all of them and by run."""
    names = " x ".join(name.replace("_", " ").replace("macs", "MACs") for name in record.objectives)
    accuracies = ", ".join("0" for _ in record.objectives[:-1])
    line = (
        f"hypervolume: {percent(record.hypervolume)} % of the box {names}, measured from\n"
        f"({accuracies}, {record.reference[-1] / 1e6:.2f} M MACs): {record.reference_rule}"
    )
    if len(record.hypervolume_of) == 1:
        return line
    best = sorted(record.hypervolume_of.items(), key=lambda item: -item[1]) if len(record.hypervolume_of) > MOST else ()
    runs = [f"{name} {percent(value)} %" for name, value in best or record.hypervolume_of.items()]
    return f"{line}\nof each run alone: {shortened(runs, ', ', 'summary.json')}"


def in_interval(value: float, low: float, high: float) -> str:
    """Return whether a test figure lies in the interval that calibration promised, in words."""
    return "kept" if low <= value <= high else "test is below" if value < low else "test is above"


def plain(value: Plain) -> str:
    """Format a fact of a record, short: numbers with 4 digits, from a million on with M."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value / 1e6:.4g} M" if abs(value) >= 1e6 else f"{value:.4g}"


def facts(found: Mapping[str, Plain]) -> str:
    """Format what a rule says of its fit, in one line; a colon stands before a sentence."""
    said = {key: plain(value) for key, value in found.items()}
    return "; ".join(f"{key}{':' if ' ' in text else ''} {text}" for key, text in said.items())


def text(headers: Sequence[str], rows: Sequence[Sequence[str]], style: str = "simple", align: str = "right") -> str:
    """Render a table; style is one of tabulate's ("simple" for terminals, "github" for Markdown, "latex").

    align: of all columns but the first, which is "left".
    """
    if style == "github":
        rows = [[markdown(str(value)) for value in row] for row in rows]
        headers = [markdown(title) for title in headers]
    return tabulate(
        rows,
        headers=headers,
        tablefmt=style,
        disable_numparse=True,
        colalign=("left", *[align] * (len(headers) - 1)),
    )


def comma_separated(rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    """Format rows that share their keys as CSV, with a header line by default. No text is a formula."""
    stream, keys = io.StringIO(), list(rows[0])
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(keys)
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"rows of other columns: {', '.join(row)}")
        writer.writerow([cell(one) if isinstance(one, str) else one for one in map(row.__getitem__, keys)])
    return stream.getvalue()


def write_csv(rows: Sequence[Mapping[str, Any]], write: Callable[[bytes], object]) -> None:
    """Hand on what `comma_separated` returns, a part at a time."""
    for begin in range(0, len(rows), PART):
        write(comma_separated(rows[begin : begin + PART], header=begin == 0).encode())


FURTHER = {
    "certified %": "certified_accuracy",
    "corrupted %": "corruption_accuracy",
    "MACs at most (M)": "certified_macs",
}
"""Headers of a front -> columns of points.csv that are not there where no run has them."""


def front(points: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of a front.

    points: as the rows of points.csv.
    """
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "run": lambda point: str(point["run"]),
        "clean %": lambda point: percent(point["clean_accuracy"]),
        "worst case %": lambda point: _given(point["worst_accuracy"], percent),
        "certified %": lambda point: _given(point["certified_accuracy"], percent),
        "corrupted %": lambda point: _given(point["corruption_accuracy"], percent),
        "MACs (M)": lambda point: _millions(point["mean_macs"]),
        "MACs at most (M)": lambda point: _given(point["certified_macs"], _millions),
        "saved %": lambda point: percent(1 - point["mean_macs"] / point["macs_plain"]),
        "paper MACs (M)": lambda point: _millions(point["mean_macs_paper"]),
    }
    has = {key for point in points for key in point}
    for header, key in FURTHER.items():
        if key not in has:
            del columns[header]
    return list(columns), [[value(point) for value in columns.values()] for point in points]


def front_note(points: Sequence[Mapping[str, Any]]) -> str:
    """Say below a front what its columns from certificates and corrupted images are; empty where it has none."""
    said = {
        "certified_accuracy": "certified: right under any attack, for sure; MACs at most: what an attacker\n"
        "can make an image cost, mean over images",
        "corruption_accuracy": "corrupted: mean corruption accuracy, no attack and no part of the worst case",
    }
    return "\n".join(text for key, text in said.items() if any(key in point for point in points))


def _given(value: float | None, shown: Callable[[float], str]) -> str:
    return "-" if value is None else shown(value)


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f}"
