"""Tables and pictures out of records."""

import csv
import io
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from helpers.examples import EVALUATION, EXAMPLES
from rdi.records import FrontRecord, WorstRecord
from rdi.report import plots, suites, tables

WORST = next(record for record in EXAMPLES if isinstance(record, WorstRecord))


def test_rows_show_percent_millions_and_exits_counted_from_zero():
    record = replace(EVALUATION, mean_macs=17.5e6, mean_macs_paper=14e6, accuracy=0.7549)
    headers, rows = tables.evaluation_rows([record, replace(record, attack="clean")], WORST)
    assert headers[-1] == "leave at exit 0/1 %"
    assert dict(zip(headers, rows[0], strict=True)) == {
        "attack": "average",
        "images": "4",
        "accuracy %": "75.5",
        "95 % CI": "30.0-95.0",
        "MACs (M)": "17.50",
        "saved %": "12.5",
        "paper MACs (M)": "14.00",
        "paper saved %": "-10.0",
        "efficacy": "0.50",
        "leave at exit 0/1 %": "50/50",
    }
    assert rows[1][0] == "clean"
    assert rows[2][:4] == ["worst of 2", "4", "50.0", "15.0-85.0"]
    assert {len(row) for row in rows} == {len(headers)}


def test_the_map_of_transfer_has_the_attacked_exit_in_rows():
    lines = suites.transfer([(0.1, 0.2), (0.3, 0.05)]).splitlines()
    assert lines[0].split() == ["accuracy", "%", "exit", "0", "exit", "1"]
    assert lines[2].split() == ["made", "on", "exit", "0", "10.0", "20.0"]
    assert lines[3].split() == ["made", "on", "exit", "1", "30.0", "5.0"]


def test_early_exit_curves_are_a_picture_that_depends_on_them():
    def picture(share):
        curves = {"clean": (([0, 0.5, 1], [0, share, 1]), 0.6), "slowdown": (([0, 0.5, 1], [0, 0.1, 1]), 0.3)}
        return np.asarray(Image.open(io.BytesIO(suites.early_exit(curves, "demo")["png"])))

    assert picture(0.9).shape == picture(0.5).shape
    assert (picture(0.9) != picture(0.5)).any()


def test_without_attacks_there_is_no_worst_case():
    _, rows = tables.evaluation_rows([EVALUATION], None)
    assert len(rows) == 1


def test_a_table_is_text_and_markdown():
    text = tables.text(["name", "value"], [["a", "1.50"], ["b", "10.25"]], "github")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["name", "value"]
    assert lines[2:] == [["a", "1.50"], ["b", "10.25"]]
    assert len(tables.text(["name"], [["a"]]).splitlines()) == 3


def test_comma_separated_rows_are_read_back():
    rows = [{"run": "a,b", "accuracy": 0.5, "worst": None}, {"run": "c", "accuracy": 1 / 3, "worst": 0.25}]
    back = list(csv.DictReader(io.StringIO(tables.comma_separated(rows))))
    assert [row["run"] for row in back] == ["a,b", "c"]
    assert float(back[1]["accuracy"]) == 1 / 3
    assert back[0]["worst"] == ""


def point(run, clean, worst, macs, on_front):
    return {
        "run": run,
        "clean_accuracy": clean,
        "worst_accuracy": worst,
        "mean_macs": macs,
        "macs_plain": 9e6,
        "on_front": on_front,
    }


def test_the_front_is_a_picture_with_one_panel_per_pair_of_objectives():
    both = [point("a", 0.9, 0.4, 5e6, True), point("a", 0.8, 0.3, 6e6, False), point("b", 0.95, 0.5, 8e6, True)]
    clean = [{**one, "worst_accuracy": None} for one in both]
    pictures = [Image.open(io.BytesIO(plots.front(points, "title")["png"])) for points in (both, clean)]
    assert [picture.format for picture in pictures] == ["PNG", "PNG"]
    assert pictures[0].width == 3 * pictures[1].width
    assert all(np.asarray(picture.convert("L")).std() > 5 for picture in pictures), "not blank"


def test_the_panels_of_a_front_are_drawings_with_every_point_on_it():
    rows = [point("a", 0.9, 0.4, 5e6, True), point("a", 0.8, 0.3, 6e6, False), point("b", 0.95, 0.5, 8e6, True)]
    panels = plots.front_panels(rows)
    assert [title for title, _ in panels] == [
        "clean accuracy (%) against mean MACs per clean image (millions)",
        "worst-case robust accuracy (%) against mean MACs per clean image (millions)",
        "clean accuracy (%) against worst-case robust accuracy (%)",
    ]
    for _, drawing in panels:
        dots = [drawing.count(f'style="fill: var({colour})') for colour in ("--blue", "--orange", "--faint")]
        assert dots == [1, 1, 1]
    assert len(plots.front_panels([{**row, "worst_accuracy": None} for row in rows])) == 1
    assert [artist.get_label() for artist in plots.front_legend(rows)][:3] == [
        "a: on the front",
        "b: on the front",
        "dominated",
    ]


def test_a_front_shows_certificates_and_corrupted_images_of_the_runs_that_have_them():
    bare = [point("a", 0.9, 0.4, 5e6, True), point("b", 0.95, 0.5, 8e6, True)]
    extra = {"certified_accuracy": 0.25, "certified_macs": 7e6, "certified_images": 100}
    rows = [{**bare[0], **extra}, {**bare[1], **dict.fromkeys(extra)}]
    rows = [{**row, "mean_macs_paper": 1e6} for row in rows]
    headers, (first, second) = tables.front(rows)
    assert headers[2:6] == ["worst case %", "certified %", "MACs (M)", "MACs at most (M)"]
    assert first[2:6] == ["40.0", "25.0", "5.00", "7.00"]
    assert second[2:6] == ["50.0", "-", "8.00", "-"]
    assert "certified" in tables.front_note(rows)
    assert "corrupted" not in tables.front_note(rows)
    assert tables.front_note(bare) == ""
    panels = plots.front_panels(rows)
    assert [title.partition(" (")[0] for title, _ in panels[3:]] == ["certified accuracy"] * 2
    for _, drawing in panels[3:]:
        dots = [drawing.count(f'style="fill: var({colour})') for colour in ("--blue", "--orange")]
        assert dots == [1, 0], "the other run has no certificate"
    corrupted = [{**row, "corruption_accuracy": 0.5} for row in bare]
    assert [title for title, _ in plots.front_panels(corrupted)][3:] == [
        "mean corruption accuracy (%) against mean MACs per clean image (millions)"
    ]
    wide, tall = (Image.open(io.BytesIO(plots.front(some, "title")["png"])) for some in (bare, rows))
    assert tall.width == wide.width
    assert tall.height > 1.5 * wide.height


def many(runs):
    """Points and curves of many runs; the last ones are the best."""
    points = [point(f"r{k}", 0.5 + k / 1000, 0.4, 5e6, k >= runs - 20) for k in range(runs)]
    common = {"macs_plain": 9e6, "macs_plain_paper": 9e6, "kind": "budgeted", "accuracy": 0.5}
    rows = [
        {**common, "run": f"r{k}", "bank": bank, "mean_macs": macs, "mean_macs_paper": macs}
        for k in range(runs)
        for bank in ("clean", "worst", "average")
        for macs in (1e6, 2e6)
    ]
    return points, rows


def test_pictures_of_many_runs_stay_of_one_size_and_name_the_best():
    sizes = set()
    for runs in (30, 90):
        points, rows = many(runs)
        names = plots.named(points)
        assert names == [f"r{k}" for k in range(runs - 20, runs - 20 + plots.NAMED)]
        labels = [artist.get_label() for artist in plots.front_legend(points)]
        assert labels[: plots.NAMED + 1] == [f"{name}: on the front" for name in [*names, plots.OTHERS]]
        drawn = [row for row in rows if row["run"] in names]
        pictures = [Image.open(io.BytesIO(f["png"])) for f in (plots.front(points, "t"), plots.curves(drawn, "t"))]
        sizes.add(tuple(picture.size for picture in pictures))
    assert len(sizes) == 1
    few = plots.curves([row for row in rows if row["run"] in ("r0", "r1")], "t")
    assert Image.open(io.BytesIO(few["png"])).height > pictures[1].height, "a row for each of a few runs"


def test_dominated_points_of_very_many_runs_are_one_picture_in_the_printed_forms():
    few, very_many = (plots.front(many(runs)[0], "t")["svg"] for runs in (30, plots.FEW + 100))
    assert (few.count(b"<image"), very_many.count(b"<image")) == (0, 3)
    assert len(very_many) < 4 * len(few)


@pytest.mark.parametrize(("count", "letters"), [(3, 4), (30, 12), (17, 30), (2, 120)])
@pytest.mark.parametrize("across", [1, 2, 3])
def test_a_legend_covers_nothing_and_lies_inside_the_picture(across, count, letters):
    figure, axes = plt.subplots(1, across, figsize=(4.8 * across, 4.1), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_xlabel("mean MACs by the paper's rule (millions)")
    title = figure.suptitle("one line\nand another")
    height = figure.get_figheight()
    plots._legend(figure, [plt.Line2D([], [], label="m" * letters)] * count)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    for other in (*axes.flat, title):
        assert not box.overlaps(other.get_tightbbox())
    if letters < 100:  # in one column the longest name is what it is
        assert (box.x0 >= 0, box.x1 <= figure.bbox.x1) == (True, True)
    assert box.y0 >= 0
    assert min(axis.get_position().height for axis in axes.flat) * figure.get_figheight() > 0.6 * height
    plt.close(figure)


def test_captions_of_many_runs_name_the_first_and_count_the_rest():
    names = [f"r{k}" for k in range(40)]
    assert tables.shortened(names, ", ", "summary.json").endswith("r7, and 32 more, see summary.json")
    assert tables.shortened(names[:8], ", ", "summary.json") == ", ".join(names[:8])


def test_the_panels_of_curves_have_a_line_for_every_bank():
    common = {"run": "a", "macs_plain": 9e6, "macs_plain_paper": 9e6}
    rows = [
        {
            **common,
            "kind": kind,
            "bank": bank,
            "accuracy": 0.5 + k / 10,
            "mean_macs": k * 1e6,
            "mean_macs_paper": k * 1e6,
        }
        for kind in ("anytime", "budgeted")
        for bank in ("clean", "worst", "average")
        for k in (1, 2, 3)
    ]
    panels = plots.curve_panels([*rows, *({**row, "run": "b"} for row in rows)], "a")
    assert len(panels) == 2
    for _, drawing in panels:
        for colour in ("--ink", "--worst", "--sea"):
            assert f"stroke: var({colour})" in drawing
    assert [artist.get_label() for artist in plots.curve_legend(plots.curve_banks(rows))][:3] == [
        "clean",
        "worst of all attacks",
        "PGD, average",
    ]


def test_the_hypervolume_is_told_with_its_reference():
    record = next(record for record in EXAMPLES if isinstance(record, FrontRecord))
    assert tables.hypervolume(record) == (
        "hypervolume: 50.0 % of the box clean accuracy x worst accuracy x mean MACs, measured from\n"
        "(0, 0, 0.00 M MACs): accuracy 0 at the cost of the last exit"
    )
    both = replace(record, hypervolume_of={"a": 0.5, "b": 0.25}, reference=(0.0, 0.0, 2.5e7))
    assert tables.hypervolume(both).splitlines()[2] == "of each run alone: a 50.0 %, b 25.0 %"
    assert "25.00 M MACs" in tables.hypervolume(both)


def test_the_title_of_early_exit_curves_lies_within_the_picture(monkeypatch):
    figures = []
    monkeypatch.setattr(suites, "rendered", figures.append)
    words = "resnet16 on cifar10-jpeg, L-infinity eps 8/255, 20 to 50 steps of 2/255, exit policy ensemble-ac5a1e"
    for title in (words, f"{words}, {words}"):
        suites.early_exit({"confident_wrong_apgd": (((0.0, 1.0), (0.0, 1.0)), 0.5)}, title)
        figure = figures.pop()
        figure.canvas.draw()
        (drawn,) = figure.texts
        box = drawn.get_window_extent()
        assert " ".join(drawn.get_text().split()) == title
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        plt.close(figure)
