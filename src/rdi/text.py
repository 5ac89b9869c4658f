"""Text that others chose (names of files, classes, attacks) on its way to a terminal, a file, a table or a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rdi.errors import UserError

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters (the escape codes of terminals begin with one), those that turn the direction of writing, halves
of characters (of names that are not UTF-8), and line breaks."""


def visible(text: str, *, lines: bool = False) -> str:
    """Return `text` with every character that a terminal acts upon written out, as in `\\x1b`.

    lines: keep line breaks and tabs.
    """

    def written(match: re.Match[str]) -> str:
        found = match[0]
        return found if lines and found in "\n\t" else found.encode("unicode_escape").decode("ascii")

    return _UNSAFE.sub(written, text)


def is_visible(text: str) -> bool:
    """Return whether a terminal shows all of `text`, and does nothing else with it."""
    return _UNSAFE.search(text) is None


def file_name(what: str, name: str) -> str:
    """Return `name` if it names a file (or folder) in the folder that it is joined to, and no other.

    what: the option or record that it comes from.
    Raises UserError.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or not is_visible(name):
        raise UserError(
            f"{what} must be a plain name, without / and \\ and control characters, since files are called by it; "
            f"got '{visible(str(name))}'"
        )
    if len(name.encode()) > 200:
        raise UserError(f"{what} is too long for the name of a file ({len(name.encode())} bytes): at most 200")
    return name


_MARKDOWN = re.compile(r"[\\|<\[\]*`$]|&(?=[#\w])")


def markdown(text: str) -> str:
    """Return `text` for a Markdown page or a cell of its tables: no HTML, link, picture, formula or column begins."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", visible(text, lines=True))


_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+|inf|nan)(e[+-]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}( {_NUMBER})*", re.IGNORECASE)


def cell(value: object) -> object:
    """Return a value for a cell of a CSV file: a text that a spreadsheet would take for a formula begins with '.

    Numbers, and texts of numbers with spaces between them, stay as they are.
    """
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return f"'{shown}" if shown[:1] in tuple("=+-@") and not _NUMBERS.fullmatch(shown) else shown


def snake_case(name: str) -> str:
    """Return the name of a class as options are written: MaxAverage as max_average."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """Return the first entry in which two nested dictionaries differ, as `key: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            if found := first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return found
        return ""
    return "" if old == new else f"{where}: {old} -> {new}"
