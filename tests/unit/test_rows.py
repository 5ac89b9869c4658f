"""Rows kept as tuples are the rows that were given."""

import tracemalloc

import pytest

from rdi.runs.rows import Rows


def test_rows_come_back_in_the_order_of_the_columns():
    rows = Rows(["run", "a", "b"])
    rows.extend([{"b": 1, "a": 0.5}, {"a": None, "b": 2}], run="r")
    rows.extend([{"a": 0.25, "b": 1.0}], run="s")
    wanted = [{"run": "r", "a": 0.5, "b": 1}, {"run": "r", "a": None, "b": 2}, {"run": "s", "a": 0.25, "b": 1.0}]
    assert list(rows) == wanted
    assert len(rows) == 3
    assert rows[1] == wanted[1]
    assert rows[1:] == wanted[1:]
    assert [list(row) for row in rows] == [["run", "a", "b"]] * 3
    assert [type(row["b"]) for row in rows] == [int, int, float]
    assert rows.column("a") == [0.5, None, 0.25]
    assert list(rows.without(["a"])) == [{key: row[key] for key in ("run", "b")} for row in wanted]
    assert rows.replaced("b", [7, 8, 9]).column("b") == [7, 8, 9]
    assert rows.column("b") == [1, 2, 1.0]


def test_a_row_without_a_column_is_refused():
    with pytest.raises(KeyError):
        Rows(["run", "a"]).extend([{}], run="r")


def test_rows_take_less_than_half_of_what_dicts_take():
    made = [{f"k{k}": 1000 + k for k in range(16)} for _ in range(1000)]

    def size(keep):
        tracemalloc.start()
        kept = keep()
        found = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return found if kept else 0

    def rows():
        kept = Rows(list(made[0]))
        kept.extend(made)
        return kept

    assert size(rows) < size(lambda: [dict(row) for row in made]) / 2
