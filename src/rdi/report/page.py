"""A report as one HTML file that opens without a network: tables, pictures and galleries in, bytes out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import ClassVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    href: relative link.
    title: shown on hovering.
    shade: tint of the background, 0 to 1.
    bar: shares of a whole, drawn as one stacked bar; the columns beside it should say them in figures.
    """

    text: str = ""
    href: str | None = None
    title: str | None = None
    shade: float | None = None
    bar: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A titled table.

    caption: data, attack, strength, sample count, seed.
    rows: as long as headers.

    The first column stays in sight while the others are scrolled.

    words: headers of columns that hold words, set flush left and in several lines; numbers are set flush right.
    parts: headers of what bars in it are made of.
    """

    kind: ClassVar[str] = "table"
    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    notes: Sequence[str] = ()
    words: Sequence[str] = ()
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if odd := [row for row in self.rows if len(row) != len(self.headers)]:
            raise ValueError(f"{self.title}: {len(self.headers)} headers, but a row of {len(odd[0])}")

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a Cell."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Panel:
    """One picture.

    alt: what it shows, for those who cannot see it.
    content: an `<svg>` text, or bytes of a PNG.
    """

    alt: str
    content: str | bytes


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, below one another on a phone.

    legend: (swatch as `<svg>`, what it stands for).
    """

    kind: ClassVar[str] = "pictures"
    title: str
    caption: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class GalleryImage:
    """An image as it was judged.

    image, difference: PNG.
    difference: what was added, None for a clean image.
    answer: the class that the policy gave it.
    exit: where it left, 0-based.
    right: whether that is its class.
    """

    image: bytes
    difference: bytes | None
    answer: str
    exit: int
    right: bool


@dataclass(frozen=True)
class GallerySection:
    """Images (columns) under attacks (rows).

    columns: their true classes. None where an attack has no such image.
    """

    kind: ClassVar[str] = "gallery"
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[GalleryImage | None]]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """A few figures to see at once: (what, value, what it is of)."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    key: its anchor.
    """

    key: str
    title: str
    lead: str
    blocks: Sequence[Table | Pictures | GallerySection | Facts] = field(default_factory=tuple)


def render(title: str, lead: str, sections: Sequence[Section], made: str) -> bytes:
    """Render the page, UTF-8.

    lead: one sentence below the title.
    made: by what the page was made, for its foot.

    Everything that is not a picture is escaped. Sections without blocks are left out. Equal arguments give equal bytes.
    The page forbids the browser any request (its Content-Security-Policy).
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": Markup, "png": _data_uri, "unbroken": _unbroken}
    template = environment.from_string((files("rdi.report") / "page.html.j2").read_text(encoding="utf-8"))
    shown = [section for section in sections if section.blocks]
    return template.render(title=title, lead=lead, sections=shown, made=made).encode()


def _unbroken(header: str) -> str:
    """A header that may break between words, but not before its unit."""
    return header.replace(" %", "\N{NO-BREAK SPACE}%").replace(" (M)", "\N{NO-BREAK SPACE}(M)")


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
