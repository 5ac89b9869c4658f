"""The health report: a line per check, and what each red line means."""

from __future__ import annotations

from rdi.records import Check, HealthRecord
from rdi.report import terminal
from rdi.threats import strength

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def render(record: HealthRecord, *, colour: bool = False) -> str:
    """Render table and explanations for a terminal.

    colour: with its escape codes; the words say the same.
    """
    rows = [[check.name, word(check), check.figure] for check in record.checks]
    red = [check for check in record.checks if not check.passed]
    body = terminal.table(["check", "", "figure"], rows, words=(0, 1, 2))
    if colour:
        body = "\n".join(_coloured(body.split("\n")))
    end = "all green" if not red else f"{len(red)} of {len(record.checks)} red:"
    return "\n".join([heading(record), "", body, "", end, *(f"- {check.name}: {check.meaning}" for check in red)])


def word(check: Check) -> str:
    """Return ok or RED."""
    return "ok" if check.passed else "RED"


def _coloured(lines: list[str]) -> list[str]:
    """The lines of the table with its second column in colour."""
    start = lines[1].index("  -") + 2
    colours = {"ok ": GREEN, "RED": RED}
    return [
        f"{line[:start]}{colour}{line[start : start + 3]}{PLAIN}{line[start + 3 :]}"
        if (colour := colours.get(line[start : start + 3]))
        else line
        for line in lines
    ]


def heading(record: HealthRecord) -> str:
    """Say what was checked."""
    return (
        f"{record.run} on a random sample of {record.samples} {record.split} images of {record.data}, exit policy "
        f"{record.threshold}, {strength([record.settings])}, seed {record.seed}"
    )
