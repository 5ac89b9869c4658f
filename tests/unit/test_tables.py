"""Tables of the paper: cells are a pure function of records, and every table of sweeps/ composes."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers.composing import composed
from helpers.examples import COSTS, EVALUATION, EXAMPLES
from rdi.data import Digits
from rdi.errors import UserError
from rdi.records import CertificateRecord, Size, WorstRecord
from rdi.report.reproduction import SIZES, Row, Run, table
from rdi.runs import datasets, duration, experiments, table_specs
from rdi.runs.options import Table

WORST = next(record for record in EXAMPLES if isinstance(record, WorstRecord))


def one(clean, attacked, worst):
    names = {"clean": clean, "single_exit0": attacked, "single_exit1": attacked, "max_avg": attacked}
    evals = {name: replace(EVALUATION, attack=name, accuracy=value) for name, value in names.items()}
    return Run(COSTS, evals, replace(WORST, accuracy=worst))


def cells(*rows):
    headers, found = table(["single", "max_avg", "average"], rows)
    return [dict(zip(headers, line, strict=True)) for line in found]


def test_mean_and_deviation_over_seeds_with_their_number():
    (row,) = cells(Row("ours", [one(0.9, 0.5, 0.4), one(0.8, 0.4, 0.2)]))
    assert row["seeds"] == "2"
    assert row["clean"] == "85.0 ± 7.1 (n=2)"
    assert row["exit 0"] == row["max-avg"] == "45.0 ± 7.1 (n=2)"
    assert row["worst"] == "30.0 ± 14.1 (n=2)"
    assert row["lowest"] == "-", "average was not run"


def test_certificates_have_a_column_where_any_run_has_one():
    record = next(one for one in EXAMPLES if isinstance(one, CertificateRecord))
    plain, sure = one(0.9, 0.5, 0.4), replace(one(0.9, 0.5, 0.4), certificate=replace(record, accuracy=0.375))
    assert "certified" not in cells(Row("plain", [plain]))[0]
    first, second = cells(Row("plain", [plain]), Row("sure", [sure]))
    assert (first["certified"], second["certified"]) == ("-", "37.5")


def test_cells_that_were_not_run_show_a_dash_and_published_ones_nobody_has_are_empty():
    ours, published, absent = cells(
        Row("ours", [one(0.9, 0.5, 0.4)], {"clean": 99.52, "single_exit1": 96.45}), Row("absent", [])
    )
    assert (ours["clean"], ours["exit 1"], ours["average"], ours["worst"]) == ("90.0", "50.0", "-", "40.0")
    assert published == {
        **dict.fromkeys(published, ""),
        "": "ours, published",
        "clean": "99.52",
        "exit 1": "96.45",
    }
    assert {value for name, value in absent.items() if name} == {"-"}


def test_the_lowest_figure_is_of_all_attacks_that_the_network_has():
    def lowest(published, *exits):
        names = dict(zip(("single_exit0", "single_exit1", "single_exit2"), exits, strict=False))
        run = one(0.9, 0.5, 0.4)
        costs = replace(COSTS, macs=COSTS.macs * 3) if len(exits) == 3 else COSTS
        costs = replace(costs, macs=costs.macs[: len(exits)])
        evals = {name: replace(EVALUATION, accuracy=value) for name, value in {**names, "max_avg": 0.6}.items()}
        headers, found = table(["single", "max_avg"], [Row("a", [replace(run, costs=costs, evals=evals)], published)])
        return [dict(zip(headers, line, strict=True))["lowest"] for line in found]

    assert lowest({}, 0.7, 0.65, 0.55) == ["55.0"]
    assert lowest({}, 0.7) == ["60.0"], "one exit: the other columns are not this network's"
    assert lowest({"single_exit0": 98.5, "max_avg": 96.9, "clean": 90}, 0.7) == ["60.0", "96.90"]
    assert lowest({"single_exit0": 98.5, "clean": 90}, 0.7) == ["60.0", ""]


def test_cost_is_shown_by_both_rules_and_in_the_paper_s_unit():
    (row,) = cells(Row("ours", [one(0.9, 0.5, 0.4)]))
    assert "non-zeros %" not in row
    assert row["paper MFlops"] == f"{EVALUATION.mean_macs_paper / 2**20:.2f}"
    # 17.5 of 20 and 14 of 19 MACs
    assert (row["saved %"], row["paper saved %"], row["leave at exit %"]) == ("12.5", "26.3", "50/50")


def test_a_compressed_network_shows_its_size_and_is_compared_with_the_dense_one():
    size = next(record for record in EXAMPLES if isinstance(record, Size))
    dense_costs = replace(COSTS, macs_plain=35, macs_plain_paper=28)
    size = replace(size, ratio=0.3, size_published=0.08, size=0.111, costs_dense=dense_costs)
    small, ours = cells(
        Row("ATMC", [replace(one(0.9, 0.5, 0.4), size=size)]), Row("ours", [one(0.9, 0.5, 0.4)], {"clean": 99.0})
    )[:2]
    assert (small["saved %"], small["paper saved %"]) == ("50.0", "50.0")
    assert [small[name] for name in SIZES] == ["30.0", "8.0", "11.1"]
    assert [ours[name] for name in SIZES] == ["-", "-", "-"]


@pytest.mark.parametrize("name", table_specs.tables())
def test_every_run_of_every_table_composes_and_says_what_it_expects(name, monkeypatch):
    monkeypatch.delenv("RDI_DATA", raising=False)
    monkeypatch.setattr(duration, "IMAGES", 2)
    monkeypatch.setattr(duration, "STEPS", 1)
    monkeypatch.setattr(datasets, "source", lambda config: SimpleNamespace(load=lambda: few_images(config["backbone"])))
    spec = table_specs.table(name)
    recipes = {run: one.recipe for run, one in table_specs.runs().runs.items()}
    tried = set()
    for profile in spec.profiles:
        planned = experiments.planned(spec, Table(name=name, seeds=[0], runs="runs"), profile, compose_run)
        assert planned, f"profile {profile} has no row"
        for number, one in enumerate(planned):
            # profiles differ in their recipes alone: each run in one of them, and in the others each recipe
            run = one.folder.path.name.removesuffix("-seed0").removesuffix("-cifar10_jpeg")
            parts = {run, (recipes[run], profile)}
            if number and parts <= tried:
                continue
            tried |= parts
            kind = json.dumps([one.config[key] for key in ("backbone", "exits", "gates", "defense", "suite")])
            if kind not in tried:
                tried.add(kind)
                assert one.label in next(experiments.forecast([one]))


def test_rows_are_looked_for_under_the_thresholds_that_are_typed():
    spec = table_specs.table("resnet38")
    for typed, expected in (([], "entropy"), (["threshold=confidence"], "confidence")):
        options = Table(name="resnet38", seeds=[0], runs="runs", options=typed)
        assert {one.threshold for one in experiments.planned(spec, options, "smoke", compose_run)} == {expected}


@functools.cache
def compose_run(options):
    """Config of an `rdi run` whose attacks make one step on two images; tables share most of their rows."""
    config = composed("run", *options)
    config["optim"]["batch_size"] = 2

    def shortened(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                shortened(value)
            elif key == "steps":
                node[key] = 1
            elif key == "precision":  # processors without bfloat16 emulate it, many times slower
                node[key] = "float32"

    shortened(config)
    return config


def few_images(backbone):
    """As many channels and pixels as the tables' networks are for."""
    data = Digits(
        name="digits", calibration=300, test=400, size=28 if "smallcnn" in backbone["_target_"] else 32
    ).load()
    if "smallcnn" in backbone["_target_"]:
        return data
    return replace(data, train=replace(data.train, images=data.train.images[:2].expand(-1, 3, -1, -1)))


def test_mistakes_in_the_files_of_tables_are_told_by_file_and_place(tmp_path, monkeypatch):
    monkeypatch.setattr(table_specs, "folder", lambda: tmp_path)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "_runs.yaml").write_text(
        "recipes: {small: {cpu: [a=1]}}\nruns: {one: {recipe: small, options: []}}\n"
    )
    good = (
        "title: t\nsuite: paper\nattacks: [average]\nsource: none\nprofiles: {cpu: minutes}\nrows: {ours: {run: one}}\n"
    )
    (tmp_path / "tables" / "good.yaml").write_text(good)
    assert list(table_specs.table("good").rows) == ["ours"]
    with pytest.raises(UserError, match=r"no table 'bad': name=\.\.\. is one of good"):
        table_specs.table("bad")
    for change, message in (
        (("run: one", "run: two"), "no run 'two'"),
        (("title: t", "titel: t"), r"bad\.yaml: tit"),
        (("title: t", "title: ["), r"bad\.yaml"),
        (("title: t", "title: t\ntitle: u"), r"bad\.yaml: line 2: the key 'title' stands twice"),
        (("rows: {", "rows: {ours: {run: one}, "), r"bad\.yaml: line 6: the key 'ours' stands twice"),
        (("title: t", "title: t\nextra: [luck]"), r"extra must be one of slowdown, seconds; got 'luck'"),
    ):
        (tmp_path / "tables" / "bad.yaml").write_text(good.replace(*change))
        with pytest.raises(UserError, match=message):
            table_specs.table("bad")
    (tmp_path / "tables" / "_runs.yaml").write_text("recipes: {}\nruns: {one: {recipe: small, options: []}}\n")
    with pytest.raises(UserError, match="no recipe 'small'"):
        table_specs.table("good")


def test_what_a_run_starts_from_comes_before_it():
    runs = table_specs.runs()
    assert runs.starts("smallcnn_field-atmc8-10-l0") == ["smallcnn_field-l0-10", "smallcnn_field-plain"]
    assert runs.starts("smallcnn-plain") == []


def test_further_columns_are_those_of_the_specification():
    run = one(0.9, 0.5, 0.4)
    size = next(record for record in EXAMPLES if isinstance(record, Size))
    size = replace(size, nonzeros=20, factors={"full": 15, "square": 1, "sparse": 4})
    slow = {**run.evals, "slowdown": replace(EVALUATION, attack="slowdown", mean_macs=2.5e6)}
    rows = [Row("ours", [replace(run, evals=slow, seconds=12.4, size=size)], {"clean": 99.5}), Row("dense", [run])]
    headers, (ours, published, dense) = table(["max_avg"], rows, ["slowdown", "seconds"])
    found = dict(zip(headers, ours, strict=True))
    assert found["MACs (M) under slowdown"] == "2.50"
    assert found["training (s)"] == "12"
    assert found["in full/square/sparse factor %"] == "75.0/5.0/20.0"
    assert len(headers) == len(published) == len(dense)
    assert dense[-1] == dense[headers.index("training (s)")] == "-"
    assert "training (s)" not in table(["max_avg"], rows)[0]


def test_the_last_of_two_values_of_an_option_counts():
    runs = table_specs.Runs(
        recipes={"r": {"cpu": ["a=1", "b=2"]}}, runs={"x": table_specs.RunSpec(recipe="r", options=["a=3"])}
    )
    assert runs.options("x", "cpu") == ["a=3", "b=2"]
    assert runs.options("x", "fast") is None
