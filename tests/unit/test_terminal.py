"""What is printed fits 80 columns and cannot command a terminal."""

import logging
from dataclasses import replace

import pytest

from helpers.examples import EVALUATION, EXAMPLES
from rdi.logs import Console
from rdi.records import HealthRecord
from rdi.report import health, suites, tables, terminal

LONG = "a" * 200


def widest(text):
    return max(len(line) for line in text.split("\n"))


def test_a_table_that_fits_is_one_table():
    text = terminal.table(["attack", "accuracy %"], [["clean", "98.0"], ["average", "7.1"]])
    assert text.split("\n") == [
        "attack   accuracy %",
        "-------  ----------",
        "clean          98.0",
        "average         7.1",
    ]


def test_a_wide_table_goes_on_below_with_its_first_column():
    headers = ["attack", *(f"figure {k}" for k in range(12))]
    rows = [["clean", *(f"{k}.123456" for k in range(12))], ["worst of 3", "1.0", *[""] * 11]]
    text = terminal.table(headers, rows)
    assert widest(text) <= terminal.WIDTH
    assert text.count("clean") == 2
    assert text.count("worst of 3") == 1  # it says nothing in the second table
    assert all(f"{k}.123456" in text for k in range(12))


def test_columns_that_belong_together_stay_together():
    headers, row = ["", *[f"column {k}" for k in range(9)]], ["a", *["123456789012"] * 9]
    first, second = terminal.table(headers, [row], cut=3).split("\n\n")[:2]
    assert "column 1" in first.replace("\n", " ")
    assert first.count("123456789012") == 2
    assert second.count("123456789012") == 5
    assert terminal.table(headers[:5], [row[:5]], cut=3).count("a  ") == 1  # all fit: nothing is cut


def test_headers_are_as_narrow_as_their_figures_and_keep_their_units():
    text = terminal.table(["", *["paper saved %"] * 6], [["a", *["1.0"] * 6]])
    assert text.split("\n")[0].split() == ["paper"] * 6
    assert text.split("\n")[1].split() == ["saved", "%"] * 6


@pytest.mark.parametrize("words", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("cell", [LONG, "many short words " * 20, "", "\x1b[2J\x07", "\udce9"])
def test_no_cell_breaks_the_width_or_reaches_the_terminal_raw(cell, words):
    text = terminal.table(["name", "state", "why"], [[cell, "ok", cell if 2 in words else "x"]] * 2, words)
    assert widest(text) <= terminal.WIDTH
    assert "\x1b" not in text
    text.encode()


def test_words_take_the_room_that_figures_leave():
    text = terminal.table(["check", "", "figure"], [["order", "ok", "long " * 30]], words=(0, 1, 2))
    assert widest(text) <= terminal.WIDTH
    assert len(text.split("\n")) == 5


def test_prose_wraps_at_double_spaces_first_and_leaves_paths_whole():
    line = f"step 31  {'clean 72/19/16  ' * 6}end"
    assert all(part.startswith(("step", "clean", "end")) for part in terminal.fit(line).split("\n"))
    assert widest(terminal.fit(line)) <= terminal.WIDTH
    assert terminal.fit(LONG) == LONG
    assert terminal.fit("short\n\nlines") == "short\n\nlines"
    assert widest(terminal.fit("some words " * 30)) <= terminal.WIDTH


def test_messages_are_wrapped_where_somebody_reads_along(monkeypatch, capsys):
    record = logging.LogRecord("rdi", logging.INFO, "", 0, "some words " * 20, (), None)
    Console().emit(record)
    assert len(capsys.readouterr().err.rstrip().splitlines()) == 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    Console().emit(record)
    lines = capsys.readouterr().err.rstrip().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= terminal.WIDTH


def test_commands_stay_in_one_line():
    line = "  rdi pareto " + "runs/a " * 20
    assert terminal.fit(line) == line


def test_health_is_coloured_in_its_column_only():
    record = next(one for one in EXAMPLES if isinstance(one, HealthRecord))
    [check] = record.checks
    red = replace(check, name="RED ok", passed=False, figure="ok RED " * 30)
    plain, coloured = (health.render(replace(record, checks=(check, red)), colour=colour) for colour in (False, True))
    assert terminal.COLOURS.sub("", coloured) == plain
    assert coloured.count(health.GREEN) == coloured.count(health.RED) == 1
    assert widest(plain.split("\n\n")[1]) <= terminal.WIDTH


@pytest.mark.parametrize("exits", [1, 3, 7, 15])
def test_the_tables_of_any_number_of_exits_fit(exits):
    record = replace(EVALUATION, attack="a_very_long_name_of_an_attack@other", exit_share=(1 / exits,) * exits)
    text = terminal.table(*tables.evaluation_rows([record] * 2, None), cut=tables.PAPER)
    assert widest(text) <= terminal.WIDTH
    assert widest(suites.transfer([(0.5,) * exits] * exits)) <= terminal.WIDTH
