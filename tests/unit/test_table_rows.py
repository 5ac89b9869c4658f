"""What the rows of a table are made of: data that stands in, networks that were trained before, expected minutes."""

from pathlib import Path

import pytest

from helpers.composing import composed
from rdi.data import Digits
from rdi.folders import RunFolder
from rdi.records import Manifest, read
from rdi.runs import duration, experiments, table_specs
from rdi.runs.identity import identity

ROOT = Path(__file__).resolve().parents[2]
MNIST = ROOT / "results" / "mnist-max_avg"


def experiment(folder, config):
    return experiments.Experiment("a row", 0, RunFolder(folder), "entropy", (), lambda options: config, 0)


@pytest.mark.parametrize(("there", "expected"), [(True, None), (False, "cifar10_jpeg")])
@pytest.mark.parametrize("name", ["resnet38", "mobilenetv2"])
def test_cifar10_is_replaced_where_it_is_not_there(name, there, expected, tmp_path):
    runs, spec = table_specs.runs(), table_specs.table(name)
    if there:
        (tmp_path / "cifar-10-batches-py").mkdir()
    mine = [row.run for row in spec.rows.values() if runs.options(row.run, "cpu")]
    recipes = {"resnet38": ["one_step", "three_epochs"], "mobilenetv2": ["one_step", "one_epoch"]}[name]
    assert mine == [f"{name}-{recipe}{form}" for recipe in recipes for form in ("-plain", "", "-lean")]
    for run in mine:
        assert runs.stand_in(runs.options(run, "cpu"), "cpu", tmp_path) == expected
        assert runs.stand_in([*runs.options(run, "cpu"), "data=mnist"], "cpu", tmp_path) is None
    assert runs.stand_in(runs.options(f"{name}-main", "fast"), "fast", tmp_path) is None


def test_the_recipe_of_two_cores_composes_in_every_form():
    runs = table_specs.runs()
    for run, exits in (
        ("resnet38-one_step-lean", "rdi.lean_exits.LeanExits"),
        ("mobilenetv2-one_step-plain", "rdi.exits.NoExits"),
    ):
        config = composed("run", *runs.options(run, "cpu"))
        assert config["exits"]["_target_"] == exits
        assert (config["precision"], config["channels_last"], config["engine"]["precision"]) == ("bf16", True, "bf16")
        assert config["defense"]["terms"][1]["weight"] == 0.5
        assert config["optim"]["average"] == 0.999


@pytest.mark.parametrize(("name", "epochs"), [("resnet38-three_epochs", 3), ("mobilenetv2-one_epoch", 1)])
def test_the_recipe_without_matrix_units_is_one_for_every_form(name, epochs):
    runs, exits = table_specs.runs(), {}
    for form in ("-plain", "", "-lean"):
        config = composed("run", *runs.options(f"{name}{form}", "cpu"))
        exits[form] = config.pop("exits")["_target_"]
        rest = {key: config[key] for key in ("backbone", "data", "defense", "optim", "precision", "samples")}
        assert rest == exits.setdefault("rest", rest)
    assert exits.pop("rest")["optim"]["epochs"] == epochs
    assert exits == {"-plain": "rdi.exits.NoExits", "": "rdi.exits.PaperExits", "-lean": "rdi.lean_exits.LeanExits"}


def test_a_network_of_results_with_the_same_settings_is_taken(tmp_path, monkeypatch):
    manifest = read(MNIST / "manifest.json", Manifest)
    monkeypatch.setattr(experiments, "RESULTS", MNIST.parent)
    found = experiments.taken(experiment(tmp_path / "row", manifest.config))
    assert (found.taken, found.folder.path, found.threshold) == (True, MNIST, "paper_smallcnn")
    assert experiments.finished(found, table_specs.table("smallcnn"))
    monkeypatch.setattr(experiments, "RESULTS", MNIST.parents[1])
    assert experiments.taken(experiment(tmp_path / "row", manifest.config)).folder.path == MNIST, "one folder deeper"
    other = experiment(tmp_path / "row", {**manifest.config, "seed": 1})
    assert experiments.taken(other) is other


@pytest.mark.parametrize(
    ("run", "folder"),
    [("msdnet3-alp", "msdnet3"), ("resnet38-gated", "resnet38-gated"), ("resnet38-bap", "resnet38-bap")],
)
def test_the_trained_networks_of_the_field_are_rows_of_its_table(run, folder):
    words = table_specs.runs().options(run, "cpu")
    options = ["data=cifar10_jpeg" if word == "data=cifar10" else word for word in words]
    manifest = read(MNIST.parent / "field" / folder / "manifest.json", Manifest)
    assert identity(composed("run", *options)) == manifest.identity
    assert run in [row.run for row in table_specs.table("field_resnet38").rows.values()]


def test_expected_minutes_follow_from_one_step_and_one_batch(monkeypatch):
    ran = []

    def timed(work, device):
        ran.append(work())
        return 3.0

    monkeypatch.setattr(duration, "_seconds", timed)
    config = composed("run", "optim.epochs=2", "samples=50", "threads=1", "attack.steps=1")
    data = Digits(name="digits", calibration=300, test=400).load()
    found = duration.expected(config, data)
    # 3 s for two steps; of three single exits, average and max-average each 20 steps of 3 s per 16 images
    assert found.steps == round(2 * len(data.train) / 32)
    assert found.training == found.steps * 3.0 / 2
    assert found.attacks == pytest.approx(50 * 5 * 20 * 3.0 / 16)
    assert len(ran) == 6
    found = duration.expected(config, data, trained=True)
    assert (found.steps, found.training, found.total) == (0, 0, found.attacks)
    assert len(ran) == 6 + 5, "a trained network is not trained for the forecast"
    found = duration.expected(config, data, trained=True, made={"clean", "single_exit0", "single_exit2", "average"})
    assert found.attacks == pytest.approx(50 * 2 * 20 * 3.0 / 16), "banks that are there are not made again"
    assert len(ran) == 6 + 5 + 2
