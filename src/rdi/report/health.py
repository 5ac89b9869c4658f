"""The health report: a line per check, and what each red line means."""

from __future__ import annotations

from rdi.records import Check, HealthRecord
from rdi.report import tables
from rdi.threats import strength

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def render(record: HealthRecord, *, colour: bool = False) -> str:
    """Table and explanations, for a terminal. colour: with its escape codes; the words say the same."""
    rows = [[check.name, word(check, colour), check.figure] for check in record.checks]
    red = [check for check in record.checks if not check.passed]
    body = tables.text(["check", "", "figure"], rows, align="left")
    end = "all green" if not red else f"{len(red)} of {len(record.checks)} red:"
    return "\n".join([heading(record), "", body, "", end, *(f"- {check.name}: {check.meaning}" for check in red)])


def word(check: Check, colour: bool) -> str:
    """ok or RED."""
    text = "ok" if check.passed else "RED"
    return f"{GREEN if check.passed else RED}{text}{PLAIN}" if colour else text


def heading(record: HealthRecord) -> str:
    """What was looked at."""
    return (
        f"{record.run} on a random sample of {record.samples} {record.split} images of {record.data}, exit policy "
        f"{record.threshold}, {strength([record.settings])}, seed {record.seed}"
    )
