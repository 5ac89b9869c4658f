"""Figures of a network and its exit policy: rows that print as a table, and become dictionaries or a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rdi.errors import UserError, extra
from rdi.report.terminal import table


@dataclass(frozen=True)
class Row:
    """Figures of a policy on images under one attack; accuracies, shares and savings are fractions.

    attack: "clean", the attack's name, or "worst of N": right under each of N attacks of one threat model, image by
        image.
    eps: radius, pixel units; None of clean images.
    norm: of the ball: "linf", "l2" or "l1"; None of clean images.
    samples: number of images.
    accuracy: of the answers at the exits taken.
    accuracy_low, accuracy_high: its 95 % Wilson interval.
    exit_accuracy: of each exit alone.
    exit_share: of the images, by where they leave.
    mean_macs: multiply-adds per image.
    saving: of the MACs of the network without early exits, below 0 where early heads cost more than they save.
    The last four are None of a worst case.
    """

    attack: str
    eps: float | None
    norm: str | None
    samples: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_accuracy: tuple[float, ...] | None = None
    exit_share: tuple[float, ...] | None = None
    mean_macs: float | None = None
    saving: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network and its policy on clean images and under attacks. Printed, it is a table.

    rows: clean images, every attack, and the worst case of each threat model.
    """

    rows: tuple[Row, ...]

    def __getitem__(self, attack: str) -> Row:
        """Return the row of an attack. Raises UserError where there is none."""
        found = {row.attack: row for row in self.rows if not _is_worst(row)}
        if attack not in found:
            raise UserError(f"no attack {attack!r} was judged; there are {', '.join(found)}")
        return found[attack]

    @property
    def worst(self) -> Row:
        """The worst case over all attacks. Raises UserError without attacks, and where threat models differ."""
        found = [row for row in self.rows if _is_worst(row)]
        if len(found) != 1:
            listed = ", ".join(f"{row.norm} eps {row.eps:g}" for row in found)
            raise UserError(
                f"a worst case is over attacks of one threat model, these are of {listed}: look into rows"
                if found
                else "no attack was judged, so there is no worst case: give evaluate(..., attacks)"
            )
        return found[0]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as flat mappings of plain values: exit0_accuracy, exit0_share, ..."""
        found = []
        for row in self.rows:
            flat = asdict(row)
            for name in ("exit_accuracy", "exit_share"):
                values = flat.pop(name) or ()
                flat |= {name.replace("exit", f"exit{k}"): value for k, value in enumerate(values)}
            found.append(flat)
        return found

    def to_pandas(self) -> Any:
        """Return the rows as a pandas.DataFrame. Raises UserError without pandas."""
        with extra("pandas", "pandas is not installed", ", or take to_dicts()"):
            import pandas
        return pandas.DataFrame(self.to_dicts())

    def __str__(self) -> str:
        headers = ["attack", "images", "accuracy %", "95 % CI", "MACs (M)", "saved %", "each exit %", "leave at exit %"]
        return table(headers, [_cells(row) for row in self.rows])


def _is_worst(row: Row) -> bool:
    return row.exit_accuracy is None


def _cells(row: Row) -> list[str]:
    def percents(values: Sequence[float] | None, digits: int) -> str:
        return "/".join(f"{100 * value:z.{digits}f}" for value in values or ())

    return [
        row.attack,
        str(row.samples),
        percents([row.accuracy], 1),
        f"{100 * row.accuracy_low:.1f}-{100 * row.accuracy_high:.1f}",
        "" if row.mean_macs is None else f"{row.mean_macs / 1e6:.3g}",
        "" if row.saving is None else percents([row.saving], 1),
        percents(row.exit_accuracy, 1),
        percents(row.exit_share, 0),
    ]
