"""Text for a terminal of 80 columns: tables that fit, prose that wraps, and nothing that moves the cursor."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from rdi.text import visible

WIDTH = 80
GAP = 2
NARROWEST = 16
"""Letters that a column of words is narrowed to before a table is cut in two; half as many again for the first one."""
COLOURS = re.compile(r"\x1b\[\d*m")


def fit(text: str, indent: str = "") -> str:
    """Wrap long lines of `text`, at double spaces where there are some; a word as long as a path stays whole.

    indent: of the lines that a long one goes on in. Lines that fit, and commands, are left as they are.
    """
    return "\n".join(part for line in text.split("\n") for part in _fitted(line, indent))


def _fitted(line: str, indent: str) -> list[str]:
    if len(COLOURS.sub("", line)) <= WIDTH or line.lstrip().startswith("rdi "):
        return [line]  # a command in two lines could not be pasted
    found = [""]
    for part in line.split("  "):
        longer = f"{found[-1]}  {part}" if found[-1] else part
        if len(longer) <= WIDTH:
            found[-1] = longer
            continue
        start = indent if found[0] else ""
        wrapped = textwrap.wrap(
            part,
            WIDTH,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        found = [*(one for one in found if one), *(wrapped or [""])]
    return found


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[int] = (0,),
    cut: int | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Render a table of at most WIDTH letters a line. The order of the columns is their importance.

    What does not fit beside the others stands in further tables below, each with the first column again; rows that say
    nothing there are left out.

    words: columns of words, set flush left and wrapped; all others hold figures.
    cut: column that the second table begins with, where one is needed.
    notes: text below each row, indented, as wide as a line; of one table that holds all columns.
    """
    cells = [[visible(COLOURS.sub("", cell)) for cell in row] for row in rows]
    columns = [[row[k] for row in cells] for k in range(len(headers))]
    whole = sum(max(map(len, [header, *column])) for header, column in zip(headers, columns, strict=True))
    fits = whole + GAP * (len(headers) - 1) <= WIDTH
    titles = [
        header if fits or k in words else _title(header, column)
        for k, (header, column) in enumerate(zip(headers, columns, strict=True))
    ]
    natural = [
        max([len(line) for line in title.split("\n")] + [len(cell) for cell in column])
        for title, column in zip(titles, columns, strict=True)
    ]
    least = [
        min(size, NARROWEST * 3 // 2 if k == 0 else NARROWEST) if k in words else size for k, size in enumerate(natural)
    ]
    blocks: list[list[int]] = [[0]]
    for k in range(1, len(headers)):
        full = sum(least[one] + GAP for one in blocks[-1]) + least[k] > WIDTH
        if (full and len(blocks[-1]) > 1) or (k == cut and not fits):
            blocks.append([0])
        blocks[-1].append(k)
    return "\n\n".join(_block(block, titles, cells, natural, least, words, notes) for block in blocks)


def fits(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a table needs no wrapped cell."""
    columns = zip(headers, *rows, strict=True)
    return sum(max(map(len, column)) + GAP for column in columns) - GAP <= WIDTH


def _title(header: str, column: Sequence[str]) -> str:
    """A header in as many lines as its figures are narrow; a unit stays with the word before it."""
    joined = header.replace(" %", "\N{NO-BREAK SPACE}%").replace(" (M)", "\N{NO-BREAK SPACE}(M)")
    width = max([len(word) for word in joined.split(" ")] + [len(cell) for cell in column])
    return "\n".join(textwrap.wrap(joined, width)).replace("\N{NO-BREAK SPACE}", " ")


def _block(
    block: Sequence[int],
    titles: Sequence[str],
    cells: Sequence[Sequence[str]],
    natural: Sequence[int],
    least: Sequence[int],
    words: Sequence[int],
    notes: Sequence[str],
) -> str:
    """These columns, those of words as wide as there is room."""
    widths = {k: least[k] for k in block}
    spare = WIDTH - sum(widths.values()) - GAP * (len(block) - 1)
    for k in block:
        more = max(0, min(spare, natural[k] - widths[k])) if k in words else 0
        widths[k] += more
        spare -= more
    rows = [row for row in cells if block[1:2] in ([], [1]) or any(row[k] for k in block[1:])]
    body = [["\n".join(_lines(row[k], k, widths, words)) for k in block] for row in rows]
    drawn = [max(len(line) for row in [titles, *cells] for line in _lines(row[k], k, widths, words)) for k in block]
    # headers as rows: tabulate gives real ones two more letters each
    text = tabulate(
        [[titles[k] for k in block], ["-" * width for width in drawn], *body],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left" if k in words else "right" for k in block],
    )
    if not notes:
        return text
    lines = text.splitlines()
    heights = [max(cell.count("\n") + 1 for cell in row) for row in body]
    done = len(lines) - sum(heights)
    found = lines[:done]
    for height, note in zip(heights, notes, strict=True):
        found += lines[done : done + height]
        indent = " " * 2 * GAP
        found += textwrap.wrap(
            visible(note), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        done += height
    return "\n".join(found)


def _lines(cell: str, k: int, widths: Mapping[int, int], words: Sequence[int]) -> list[str]:
    return (textwrap.wrap(cell, widths[k]) if k in words else cell.split("\n")) or [""]
