"""Attacks are called and drawn the same everywhere."""

import io

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from rdi.cli._hydra import conf_dir
from rdi.report import files, plots, styles, suites, svg

ATTACKS = sorted(path.stem for path in (conf_dir() / "attack").glob("*.yaml"))


@pytest.mark.parametrize(
    ("bank", "name"),
    {
        "clean": "clean",
        "worst": "worst case",
        "main": "PGD, last exit",
        "single_exit0": "PGD, exit 0",
        "single_apgd_exit12": "APGD, exit 12",
        "max_avg": "PGD, max-average",
        "max_avg_fgsm": "FGSM, max-average",
        "average_apgd_dlr": "APGD-DLR, average",
        "soft@entropy": "PGD, soft exits (adaptive) (entropy)",
        "average@eps0.3": "PGD, average (eps0.3)",
        "autoattack": "AutoAttack",
        "autoattack_exits_exit3": "AutoAttack, exit 3",
        "square_exit1": "Square, exit 1",
        "my_attack": "my attack",
        "my_attack_exit2": "my attack, exit 2",
        "": "",
        "_exit": " exit",
    }.items(),
)
def test_names_are_those_that_a_paper_prints(bank, name):
    assert styles.display_name(bank) == name
    assert set(styles.style(bank)) == {"color", "linestyle", "linewidth"}


def test_every_attack_of_ours_has_a_name_and_a_colour_of_its_own_page():
    assert [name for name in ATTACKS if "_" in styles.display_name(name)] == []
    assert {styles.style(name)["color"] for name in [*ATTACKS, "clean", "worst", "someones"]} <= set(svg.THEME)


def test_no_two_attacks_of_a_suite_look_alike():
    names = [
        "clean",
        "worst",
        *(f"single_exit{k}" for k in range(7)),
        *(name for name in ATTACKS if not name.startswith(("single", "autoattack_exits"))),
    ]
    names += [f"single_{solver}_exit{k}" for solver in ("fgsm", "apgd") for k in range(3)]
    drawn = [str(sorted(styles.style(name).items())) for name in names]
    assert sorted(name for name, one in zip(names, drawn, strict=True) if drawn.count(one) > 1) == []


def test_colours_differ_in_lightness_or_hue_for_the_colour_blind():
    """The published test attacks, by the Okabe-Ito palette: a red-green blind eye sees blue and luminance."""

    def seen(name):
        red, green, blue = to_rgb(styles.style(name)["color"])
        return 0.6 * green + 0.4 * red, blue

    shown = [seen(name) for name in ("clean", "worst", "main", "single_exit0", "average", "max_avg")]
    distances = [
        max(abs(a - b) for a, b in zip(one, other, strict=True)) for i, one in enumerate(shown) for other in shown[:i]
    ]
    assert min(distances) > 0.1


def test_an_attack_keeps_its_colour_whatever_stands_beside_it():
    def colours(*banks):
        return {artist.get_label(): artist.get_color() for artist in plots.curve_legend(banks)}

    alone, among = colours("average"), colours("clean", "worst", "aaa", "average", "max_avg")
    assert alone.items() <= among.items()
    curve = (([0, 1], [0, 1]), 0.5)
    drawn = suites.early_exit({"average": curve}, "t")["svg"].decode()
    assert among["PGD, average"] in drawn
    assert "PGD, average: 0.50" in drawn


def test_a_figure_is_written_as_png_svg_and_pdf_with_equal_bytes():
    def figure():
        drawn, axis = plt.subplots()
        axis.plot([1, 2], [3, 4])
        return files.rendered(drawn)

    first = figure()
    assert {kind: content[:4] for kind, content in first.items()} == {
        "png": b"\x89PNG",
        "svg": b"<?xm",
        "pdf": b"%PDF",
    }
    assert figure() == first
    assert plt.get_fignums() == []


def test_intervals_are_drawn_where_the_number_of_images_is_known():
    row = {"run": "a", "kind": "budgeted", "bank": "clean", "mean_macs_paper": 1e6, "macs_plain": 9e6}
    rows = [{**row, "macs_plain_paper": 9e6, "accuracy": 0.5, "mean_macs": macs} for macs in (1e6, 2e6)]
    bare, banded = (plots.curve_panels(points, "a")[0][1] for points in (rows, [{**r, "images": 100} for r in rows]))
    assert "opacity: 0.12" in banded
    assert "opacity: 0.12" not in bare
    point = {"run": "a", "clean_accuracy": 0.5, "worst_accuracy": None, "mean_macs": 1e6, "macs_plain": None}
    known = {**point, "on_front": True, "clean_images": 100}
    [(_, with_bars)], [(_, without)] = (plots.front_panels([one]) for one in (known, {**known, "clean_images": None}))
    assert len(io.StringIO(with_bars).getvalue()) > len(without)
    assert plots._interval(0.5, 100) == pytest.approx((0.0962, 0.0962), abs=1e-3)
