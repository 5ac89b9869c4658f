"""Rows of a table in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Rows(Sequence[dict[str, Any]]):
    """Rows with the same columns: dicts when they are looked at, tuples while they are kept, a quarter of the size.

    columns: of all rows, in order.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._rows: list[tuple[Any, ...]] = []
        self._whole: dict[int, int] = {}  # whole numbers are few, and as many objects as rows when they come from JSON

    def extend(self, rows: Sequence[Mapping[str, Any]], **shared: Any) -> None:
        """Add rows; shared: columns that are the same in all of them."""
        for row in rows:
            whole = {**row, **shared}
            values = (whole[key] for key in self.columns)
            self._rows.append(tuple(self._whole.setdefault(one, one) if type(one) is int else one for one in values))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        found = self._rows[index]
        return self._dict(found) if isinstance(index, int) else [self._dict(row) for row in found]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._dict, self._rows)

    def _dict(self, row: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.columns, row, strict=True))

    def column(self, key: str) -> list[Any]:
        """Return one column."""
        place = self.columns.index(key)
        return [row[place] for row in self._rows]

    def replaced(self, key: str, values: Sequence[Any]) -> Rows:
        """Return the rows with other values in one column."""
        place, made = self.columns.index(key), Rows(self.columns)
        made._rows = [(*row[:place], one, *row[place + 1 :]) for row, one in zip(self._rows, values, strict=True)]
        return made

    def without(self, keys: Sequence[str]) -> Rows:
        """Return the rows without some columns."""
        kept = [place for place, key in enumerate(self.columns) if key not in keys]
        made = Rows([self.columns[place] for place in kept])
        made._rows = [tuple(row[place] for place in kept) for row in self._rows]
        return made
