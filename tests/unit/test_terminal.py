"""What is printed fits 80 columns and cannot command a terminal."""

import pytest

from rdi.report import terminal

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


def test_headers_are_as_narrow_as_their_figures_and_keep_their_units():
    text = terminal.table(["", "paper saved %"], [["a", "1.0"]])
    assert text.split("\n")[:2] == ["     paper", "   saved %"]


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
