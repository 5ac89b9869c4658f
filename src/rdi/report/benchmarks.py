"""Tables of a benchmark record, for the terminal and for Markdown. Ratios with their smallest and largest round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rdi.records import BenchRecord, BenchRow
from rdi.report import tables, terminal

SLOWER = 0.03
"""Most time beyond that of the whole network with all exits, as a share of it."""

Cell = Callable[[BenchRow], str]


def percent(key: str) -> Cell:
    """Return the cell of a fraction, in percent."""
    return lambda row: f"{100 * row.values[key]:z.1f}"


def number(key: str, digits: int = 1) -> Cell:
    """Return the cell of a plain number."""
    return lambda row: f"{row.values[key]:.{digits}f}"


def given(key: str, cell: Cell) -> Cell:
    """Return a cell that is empty where the row has no such value."""
    return lambda row: cell(row) if key in row.values else ""


def ratio(row: BenchRow) -> str:
    """Format median and extremes, as 4.9 (4.8-5.1)."""
    if row.ratio is None:
        return "-"
    extremes = "" if row.ratio_low is None else f" ({row.ratio_low:.2f}-{row.ratio_high:.2f})"
    return f"{row.ratio:.2f}{extremes}"


def target(row: BenchRow) -> str:
    """Say what the ratio was to reach and whether it did."""
    if row.target is None or row.ratio is None:
        return ""
    return f">= {row.target:g}, {'reached' if row.ratio >= row.target else 'MISSED'}"


def slower(row: BenchRow) -> str:
    """Say how much slower than the whole network with all exits a row is, and whether that is too much."""
    share = row.values["slower_than_all_exits"]
    return f"{100 * share:z.1f}{f', MISSED (at most {100 * SLOWER:g})' if share > SLOWER else ''}"


def accuracy(key: str) -> Cell:
    """Return the cell of a robust accuracy out of some samples."""
    return lambda row: f"{100 * row.values[key]:.2f}"


def difference(row: BenchRow) -> str:
    """Format ours minus the baseline in points, and whether that is allowed."""
    points = 100 * (row.values["robust_accuracy"] - row.values["baseline_robust_accuracy"])
    allowed = 100 * row.values["allowed_difference"]
    return f"{points:+.2f} (allowed {allowed:g}: {'kept' if abs(points) <= allowed + 1e-9 else 'EXCEEDED'})"


NAME: tuple[str, Cell] = ("", lambda row: row.name)
BATCH: tuple[str, Cell] = ("batch", lambda row: str(row.batch_size))
GROUPS: dict[str, tuple[str, tuple[tuple[str, Cell], ...]]] = {
    "attacks": (
        "Attacks: time of the baseline / time of ours, equal images and steps",
        (
            NAME,
            ("against", lambda row: row.against or ""),
            BATCH,
            ("baseline s", number("baseline_seconds", 2)),
            ("ours s", number("seconds", 2)),
            ("ratio", ratio),
            ("target", target),
            ("of matrix rate %", lambda row: percent("share_of_matrix_rate")(row) if len(row.values) > 2 else "-"),
        ),
    ),
    "memory": (
        "Peak memory of one step of max-average: ours / one exit's attack at a time",
        (
            NAME,
            BATCH,
            ("baseline MiB", number("baseline_peak_mib", 0)),
            ("ours MiB", number("peak_mib", 0)),
            ("ratio", ratio),
        ),
    ),
    "training": (
        "Training steps: time of the textbook's step / time of ours",
        (
            NAME,
            BATCH,
            ("baseline images/s", number("baseline_images_per_second")),
            ("ours images/s", number("images_per_second")),
            ("ratio", ratio),
            ("target", target),
            ("data and augmentation %", percent("data_and_augmentation_share")),
        ),
    ),
    "ranks": (
        "Ranks: time of a training step of one process / of several, on as many cores",
        (
            NAME,
            ("against", lambda row: row.against or ""),
            BATCH,
            ("baseline images/s", number("baseline_images_per_second")),
            ("ours images/s", number("images_per_second")),
            ("ratio", ratio),
            ("target", target),
        ),
    ),
    "roofline": (
        "Roofline: where a training step's time goes, and at which share of the machine's rates",
        (
            ("operators", lambda row: row.name),
            BATCH,
            ("seconds", number("seconds", 4)),
            ("of the operators %", percent("share")),
            ("GMAC/s", lambda row: f"{row.values['macs_per_second'] / 1e9:.0f}"),
            ("of matrix rate %", percent("share_of_matrix_rate")),
            ("GB/s", lambda row: f"{row.values['bytes_per_second'] / 1e9:.1f}"),
            ("of copy rate %", percent("share_of_copy_rate")),
        ),
    ),
    "inference": (
        "Adaptive inference against the backbone without early exits: time saved / MACs saved",
        (
            ("exit mix, network", lambda row: row.name),
            BATCH,
            ("images/s", number("images_per_second")),
            ("MACs saved %", percent("macs_saved")),
            ("time saved %", percent("time_saved")),
            ("time / MACs", ratio),
            ("at best", lambda row: "-" if row.ratio is None else f"{row.values['proportional']:.2f}"),
            ("target", target),
            ("slower than all exits %", slower),
        ),
    ),
    "deploy": (
        "Deployment, BatchNorm folded: time of what it is compared with / its own",
        (
            ("what, exit mix", lambda row: row.name),
            ("against", lambda row: row.against or ""),
            BATCH,
            ("images/s", number("images_per_second")),
            ("MACs saved %", given("macs_saved", percent("macs_saved"))),
            ("ratio", ratio),
            ("p50 ms", given("p50_ms", number("p50_ms", 2))),
            ("p99 ms", given("p99_ms", number("p99_ms", 2))),
            ("J/image", given("joules_per_image", number("joules_per_image", 4))),
            ("time / MACs", given("time_saved_per_macs_saved", number("time_saved_per_macs_saved", 2))),
            ("target", target),
        ),
    ),
    "thresholds": (
        "Thresholds",
        (NAME, ("seconds", number("seconds", 2)), ("slowest", number("most_seconds", 2))),
    ),
    "accuracy": (
        "Strength: robust accuracy of the deployed policy under the same attack, percent",
        (
            NAME,
            ("images", number("samples", 0)),
            ("textbook", accuracy("baseline_robust_accuracy")),
            ("ours", accuracy("robust_accuracy")),
            ("difference, points", difference),
            ("fooled by ours only", number("only_ours_fools", 0)),
            ("by the textbook only", number("only_baseline_fools", 0)),
        ),
    ),
}


def render(record: BenchRecord, style: str = "simple", groups: Sequence[str] = tuple(GROUPS)) -> str:
    """Render one titled table per group that was measured.

    style: "simple", for a terminal, or one of tabulate's.
    """
    parts = [conditions(record)]

    def text(headers: list[str], rows: list[list[str]]) -> str:
        return terminal.table(headers, rows) if style == "simple" else tables.text(headers, rows, style)

    for group in groups:
        title, columns = GROUPS[group]
        rows = [row for row in record.rows if row.group == group]
        if rows:
            body = [[cell(row) for _, cell in columns] for row in rows]
            heading = f"**{title}**" if style == "github" else title
            parts.append(f"{heading}\n\n{text([header for header, _ in columns], body)}")
    return "\n\n".join(parts)


def conditions(record: BenchRecord) -> str:
    """Say in one sentence what was measured, where, how often."""
    where = record.environment
    commit = "" if where.commit is None else f", commit {where.commit[:7]}{' (changed)' if where.dirty else ''}"
    return (
        f"{record.choices['backbone']}, {record.exits} exits, {record.parameters:,} parameters, images of "
        f"{'x'.join(map(str, record.shape))}; {where.device}, {where.threads} threads, torch "
        f"{where.versions['torch']}, {record.config['steps']} steps, medians of {record.repeats} rounds or more "
        f"(smallest to largest in brackets), seed {record.config['seed']}{commit}."
    )
