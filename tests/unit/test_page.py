"""The page of a report: what goes in is on it, escaped, without anything from elsewhere."""

import io
import itertools
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rdi.report import images, svg
from rdi.report.page import Cell, Facts, GalleryImage, GallerySection, Panel, Pictures, Section, Table, render

EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "link", "img", "br", "path", "use", "rect", "hr", "input"}


class Outline(HTMLParser):
    """Elements in order: (name, attributes); complains of tags that are not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(page.decode())
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *names):
        """Attributes of the elements of these names."""
        return [attributes for tag, attributes in self.elements if tag in names]


def picture():
    return images.png(np.linspace(0, 1, 64).reshape(1, 8, 8))


def drawing(count=3):
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.plot(range(count), range(count), marker="o", color="#1b6ca8", label="series")
    axis.set_xlabel(EVIL)
    text = svg.themed(figure)
    swatch = svg.swatch(axis.lines[0])
    plt.close(figure)
    return text, swatch


def everything(word="plain"):
    """A page with a block of every kind, `word` wherever words go."""
    text, swatch = drawing()
    shot = GalleryImage(image=picture(), difference=picture(), answer=word, exit=1, right=False)
    blocks = [
        Facts([(word, word, word)]),
        Table(
            word,
            word,
            [word, "b", "exit 0 %"],
            [[word, Cell(word, href="../a/b.json", title=word, shade=0.5), Cell(bar=(0.25, 0.75))]],
            notes=[word],
            parts=["exit 0 %"],
        ),
        Pictures(word, word, [Panel(word, text), Panel(word, drawing(4)[0]), Panel(word, picture())], [(swatch, word)]),
        GallerySection(word, word, [word, "2"], [(word, [shot, None])], notes=[word]),
    ]
    return render(word, word, [Section("all", word, word, blocks), Section("none", "left out", "", [])], word)


def test_every_word_is_escaped():
    page = everything(EVIL).decode()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 15
    assert "onerror" not in page
    Outline(everything(EVIL))


def test_the_same_again_gives_the_same_bytes():
    assert everything() == everything()


def test_nothing_comes_from_elsewhere():
    page = everything()
    outline = Outline(page)
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in outline.elements}
    assert b"http:" not in page
    assert b"https:" not in page
    assert b"@import" not in page
    addresses = [attributes.get(key, "") for _, attributes in outline.elements for key in ("src", "href")]
    assert {address.partition(":")[0] for address in addresses if ":" in address} == {"data"}
    (policy,) = [one["content"] for one in outline.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_it_can_be_read_without_seeing_it():
    outline = Outline(everything())
    assert outline.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(image.get("alt") for image in outline.all("img"))
    assert all(one.get("aria-label") for tag, one in outline.elements if one.get("role") in ("img", "region"))
    ids = [one["id"] for _, one in outline.elements if "id" in one]
    assert len(ids) == len(set(ids)), "in drawings, too"
    assert {one["href"][1:] for one in outline.all("a") if one["href"].startswith("#")} <= set(ids)
    assert all(one.get("scope") in ("col", "row") for one in outline.all("th"))
    assert "left out" not in " ".join(outline.text)


def test_tables_have_their_cells_their_links_and_their_bars():
    outline = Outline(everything("word"))
    assert {"href": "../a/b.json"} in outline.all("a")
    styles = [one["style"] for _, one in outline.elements if "style" in one and one["style"].startswith("--")]
    assert "--v:0.500" in styles
    assert [style for style in styles if "--w" in style] == ["--w:0.2500;--p:0.000", "--w:0.7500;--p:1.000"]
    with pytest.raises(ValueError, match="two: 2 headers, but a row of 1"):
        Table("two", "", ["a", "b"], [["a", "b"], ["a"]])


def test_a_gallery_says_what_became_of_each_image():
    page = everything("seven").decode()
    assert 'alt="seven, seven: answered seven at exit 1"' in page
    assert '<span class="wrong">✗ seven</span>' in page


def test_drawings_take_colours_and_font_from_the_page():
    text, swatch = drawing()
    for one in (text, swatch):
        assert one.startswith("<svg viewBox=")
        assert "var(--blue)" in one
        assert "#1b6ca8" not in one
        assert "xmlns" not in one
        assert not re.search(r"#[0-9a-f]{6}\b", one), "every colour has its variable"
    assert "font-family: var(--sans)" in text
    assert "DejaVu" not in text
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    assert used
    assert used <= set(re.findall(r'id="([^"]+)"', text))
    assert text == drawing()[0]


def test_every_colour_of_a_drawing_has_a_value_in_both_schemes():
    page = everything().decode()
    light, dark = page.split("@media (prefers-color-scheme: dark)")[:2]
    for name in set(svg.THEME.values()):
        assert f"{name}: #" in light
        assert f"{name}: #" in dark.split("</style>")[0].split("* {")[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_levels(channels):
    levels = np.random.default_rng(0).integers(0, 256, (channels, 5, 7))
    back = np.asarray(Image.open(io.BytesIO(images.png(levels / 255))))
    expected = levels[0] if channels == 1 else np.moveaxis(levels, 0, -1)
    assert np.array_equal(back, expected)


def test_differences_span_from_black_to_white():
    clean = np.full((1, 1, 4), 0.5)
    changed = clean + np.array([-0.1, 0.0, 0.05, 0.1])
    assert images.difference(changed, clean, 0.1)[0, 0].tolist() == pytest.approx([0, 0.5, 0.75, 1])
