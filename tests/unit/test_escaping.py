"""Names that others chose (runs, classes, attacks) stay text in every kind of page that is written."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from rdi.report import files, plots, suites, svg, tables
from rdi.report.page import Cell, Facts, Section, Table, render
from rdi.text import markdown

NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><h1>x",
    "[a](javascript:alert(1))",
    "![a](http://evil/x.png)",
    "a|b",
    "a\\|b",
    "`code`",
    "*b* **c**",
    "$\\frac{$ & $x",
    "\\input{/etc/passwd} %",
    "{{ 7*7 }} {% x %}",
    "&lt;b&gt; &#60;",
    "100% ~ ^ # _ {}",
    "]]> --> <!--",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_in_markdown_has_one_cell_per_cell_and_nothing_active(name):
    lines = tables.text(["run", name], [[name, "1"], ["b", name]], "github").splitlines()
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, "as many columns as before"
        for active in ("<", "[", "]", "*", "`", "$"):
            assert not re.search(rf"(?<!\\)(?:\\\\)*{re.escape(active)}", line)
        assert not re.search(r"(?<!\\)&(lt|#)", line)
    assert re.sub(r"\\(.)", r"\1", markdown(name)) == name, "and it still says the same"


@pytest.mark.parametrize("style", ["latex", "latex_booktabs"])
@pytest.mark.parametrize("name", NAMES)
def test_a_table_in_latex_holds_no_command_of_a_name(name, style):
    text = tables.text(["run", name], [[name, "1"]], style)
    plain = tables.text(["run", "word"], [["word", "1"]], style)
    ours = r"\\(?:textbackslash|textasciitilde|textasciicircum|ensuremath)\{[^}]*\}|\\\^\{\}|\\[&%$#_{}]"

    def bare(latex):
        return re.sub(ours, "", latex)

    for letter in "&%$#_^~{}":
        assert bare(text).count(letter) == bare(plain).count(letter), letter
    assert re.findall(r"\\[a-z]+", bare(text)) == re.findall(r"\\[a-z]+", bare(plain))


class Tags(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))


def page(word):
    blocks = [
        Facts([(word, word, word)]),
        Table(word, word, [word, "b"], [[word, Cell(word, title=word, href="a.json")]], notes=[word]),
    ]
    return render(word, word, [Section("all", word, word, blocks)], word).decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_adds_no_element_to_a_page(name):
    assert Tags(page(name)).found == Tags(page("word")).found


def drawing(name):
    """A figure with `name` wherever names go."""
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1], label=name)
    axis.set_title(name)
    axis.set_xlabel(name)
    axis.legend()
    return figure


def elements(text):
    return [one.tag for one in ElementTree.fromstring(text).iter()]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_letters_in_a_picture(name):
    for draw in (lambda word: files.rendered(drawing(word))["svg"].decode(), lambda word: themed(drawing(word))):
        text = draw(name)
        written = "".join(ElementTree.fromstring(text).itertext())
        assert name in written
        assert set(elements(text)) == set(elements(draw("word")))
        assert not re.search(r"<(script|img|foreignObject|image)\b", text)


def themed(figure):
    text = svg.themed(figure)
    plt.close(figure)
    return text


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_of_commands_draw_any_name(name):
    curve = ([(0.0, 0.0), (1.0, 1.0)], 0.5)
    try:
        drawn = suites.early_exit({name: curve}, name)
    except (TypeError, ValueError) as error:
        pytest.fail(f"{name}: {error}")
    ElementTree.fromstring(drawn["svg"])
    assert plots.matplotlib.rcParams["text.parse_math"] is False
