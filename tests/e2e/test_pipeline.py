"""All stages through the command line, and the Python interface on what they leave."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import rdi as api
from helpers.commands import TINY
from helpers.mistakes import FOLDER, images
from rdi.banks import LogitsBank
from rdi.benchmarks import machine
from rdi.emulation import emulated
from rdi.evaluating import judge
from rdi.records import BenchRecord, EvalRecord, Thresholds, WorstRecord, read
from rdi.runs import bench

SMALL = f"{TINY} samples=16 threat.test_steps=1 batch_size=16 ratios=5"


def records(folder):
    """Evaluation records without what names the run."""
    found = {}
    for path in sorted((folder / "evals").glob("*.json")):
        found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("run", "checksum")}
    return found


def test_the_demo_twice_gives_the_same_records(rdi, printed, tmp_path):
    for name in ("one", "two"):
        result = rdi(f"run run=runs/{name} {SMALL}")
        assert result.status == 0, result.err
        assert "worst case" in result.out
        assert "front:" in result.out
        assert max(map(len, result.out.splitlines())) <= 80
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    assert records(one) == records(two)
    said = (one / "log.txt").read_text().splitlines()
    assert len(said) == len(set(said)), "each line once, whatever stages the job has"
    assert sum("max_avg on" in line for line in said) == 1
    attacks = ["average", "clean", "max_avg", "single_exit0", "single_exit1", "single_exit2", "worst"]
    assert sorted(records(one)) == [f"entropy__test-{name}.json" for name in attacks]
    for name in ("points.csv", "front.csv", "curves.csv"):
        mine, theirs = ((tmp_path / "reports" / run / name).read_text() for run in ("one", "two"))
        assert mine.replace("one,", "two,") == theirs
    names = {path.name for path in (tmp_path / "reports" / "one").iterdir()}
    drawn = {f"{name}.{kind}" for name in ("front", "curves") for kind in ("png", "svg", "pdf")} | {"index.html"}
    assert (
        names
        == {"points.csv", "front.csv", "curves.csv", "table.md", "sources.json", "summary.json", ".drawn.json"} | drawn
    )
    again = rdi(f"run run=runs/one {SMALL}")
    assert again.status == 0
    assert "is trained already" in again.err
    assert again.err.count("is there already") == len(attacks) - 1


def test_the_stages_one_by_one(rdi, tmp_path):
    for line in (
        f"train run=runs/a {TINY}",
        "attack run=runs/a suite=quick samples=16 threat.test_steps=1 threads=1",
        "attack run=runs/a attack=max_avg attack.steps=1 samples=16 threads=1",
        "evaluate run=runs/a tracking=none",
        "evaluate run=runs/a tracking=none threshold=confidence",
        "evaluate run=runs/a tracking=none threshold=entropy threshold.offsets=-0.1",
        "pareto runs=[runs/a] ratios=5 tracking=none name=front",
    ):
        result = rdi(line)
        assert result.status == 0, f"{line}: {result.err}"
    names = sorted(path.name.partition("__")[0] for path in (tmp_path / "runs" / "a" / "evals").glob("*clean*"))
    assert names[:2] == ["confidence", "entropy"]
    assert names[2].startswith("entropy-")
    worst = json.loads((tmp_path / "runs" / "a" / "evals" / "entropy__test-worst.json").read_text())
    assert worst["attacks"] == ["average", "max_avg"]
    assert (tmp_path / "reports" / "front" / "front.png").stat().st_size > 1000


def test_validation_images_judge_a_run_and_leave_the_test_images_to_the_end(rdi, tmp_path):
    line = f"run run=runs/held {SMALL} data.validation=50 'stages=[train,attack,evaluate]'"
    first = rdi(f"{line} split=validation")
    assert first.status == 0, first.err
    assert "validation images, held out of training" in " ".join(first.out.split())
    evals = tmp_path / "runs" / "held" / "evals"
    assert not list(evals.glob("*__test-*"))
    clean = read(evals / "entropy__validation-clean.json", EvalRecord)
    assert (clean.split, clean.samples) == ("validation", 50)
    assert read(evals / "entropy__validation-worst.json", WorstRecord).split == "validation"
    kept = (evals / "entropy__validation-clean.json").read_bytes()
    again = rdi(line)
    assert again.status == 0, again.err
    assert "is trained already" in again.err
    assert read(evals / "entropy__test-clean.json", EvalRecord).split == "test"
    assert (evals / "entropy__validation-clean.json").read_bytes() == kept
    bank = LogitsBank.load(tmp_path / "runs" / "held" / "banks" / "validation-clean")
    other = LogitsBank.load(tmp_path / "runs" / "held" / "banks" / "test-clean")
    assert not {*bank.indices.tolist()} & {*other.indices.tolist()}
    # the same two, stage by stage
    crafting = "suite=quick samples=16 overwrite=true threads=1"
    for stage in (f"attack run=runs/held {crafting}", "evaluate run=runs/held tracking=none"):
        done = rdi(f"{stage} split=validation")
        assert done.status == 0, done.err


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("threshold=budget threshold.share=0.8", "data clean; mean MACs at most: 7.962 M"),
        ("threshold=budget threshold.macs=8e6", "data clean; mean MACs at most: 8 M"),
        ("threshold=budget threshold.accuracy=0.05", "accuracy at least 0.05"),
        ("threshold=patience", "leaves when 2 exits in a row agree"),
        ("threshold=ensemble", "geometric mean of the exits so far; thresholds"),
        ("threshold=ensemble threshold@threshold.rule=budget threshold.rule.share=0.8", "mean MACs at most: 7.962 M"),
        ("threshold=random threshold.draws=3", "mean of 3 draws"),
        ("threshold=risk threshold.alpha=0.2", "guarantee: drop <= alpha with probability >= 1 - delta; alpha 0.2"),
    ],
)
def test_policies_that_users_deploy(line, shown, rdi, demo):
    result = rdi(f"evaluate run={demo} tracking=none {line}")
    assert result.status == 0, result.err
    assert shown in " ".join(result.out.split())
    assert "expected from 300 calibration images (95 %), clean:" in result.out
    (path,) = [file for file in (demo / "thresholds").glob("*.json") if file.stem != "entropy"]
    stored = read(path, Thresholds)
    assert stored.expected["clean"].images == 400
    policy = api.load_thresholds(demo, path.stem)
    assert policy.describe() == stored.policy
    bank = LogitsBank.load(demo / "banks" / "test-clean")
    record = read(demo / "evals" / f"{path.stem}__test-clean.json", EvalRecord)
    again = judge(bank.logits, bank.labels, policy)
    assert record.accuracy == pytest.approx(float(again.correct.double().mean()))
    assert record.draws == policy.draws
    if "budget" in line and "accuracy" not in line:
        assert stored.expected["clean"].mean_macs <= stored.facts.get("mean MACs at most", 7.962e6)
    if policy.draws == 1:
        model, x = api.load(demo), torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        out = api.AdaptivePredictor(model, policy)(x)
        with torch.no_grad():
            logits = model(x)
        assert torch.equal(out.exits, policy.choose(logits))
        assert torch.equal(out.labels, policy.predict(logits, out.exits))


def test_thresholds_from_attacked_calibration_images(rdi, demo):
    attack = "attack run=runs/demo split=calibration samples=60 attack.steps=1 threads=1"
    for name in ("average", "main"):
        assert rdi(f"{attack} attack={name}").status == 0
    assert sorted(path.name for path in (demo / "banks").glob("calibration-*")) == [
        "calibration-average",
        "calibration-clean",
        "calibration-main",
    ]
    before = read(demo / "thresholds" / "entropy.json", Thresholds)
    for line in (
        "threshold=budget threshold.share=0.9 threshold.data=adversarial",
        "threshold=budget threshold.share=0.9 threshold.data=mixed",
        "threshold=risk threshold.alpha=0.3 threshold.data=adversarial",
    ):
        result = rdi(f"evaluate run=runs/demo tracking=none {line}")
        assert result.status == 0, result.err
        assert "(95 %), average:" in result.out
        assert "(95 %), main:" in result.out, "attacked on calibration only, so a promise without a test"
    files = [file for file in (demo / "thresholds").glob("*.json") if file.stem != "entropy"]
    for file in files:
        stored = read(file, Thresholds)
        assert set(stored.attacked_sha256) == {"average", "main"}
        assert stored.expected["average"].images == 16
        assert stored.expected["main"].images == 400
    assert len(files) == 3
    assert rdi("evaluate run=runs/demo tracking=none").status == 0
    assert read(demo / "thresholds" / "entropy.json", Thresholds) == before, "clean rules do not see the attacks"


def test_robust_training_withstands_an_attack_that_standard_training_does_not(rdi, tmp_path):
    line = (
        "tracking=none threads=1 data.size=16 backbone.dropout=0 optim.lr=0.05 optim.epochs=6 optim.batch_size=32 "
        "evaluations=1 threat.eps=0.1 threat.step_size=0.07 threat.steps=2 threat.test_steps=5 suite=quick "
        "samples=100 stages=[train,attack,evaluate]"
    )
    accuracy = {}
    for name, choice in {
        "standard": "defense=standard",
        "robust": "attack=average defense.adversarial_weight=1",
    }.items():
        result = rdi(f"run run=runs/{name} {line} {choice}")
        assert result.status == 0, result.err
        found = records(tmp_path / "runs" / name)
        accuracy[name] = {kind: found[f"entropy__test-{kind}.json"]["accuracy"] for kind in ("clean", "average")}
    assert min(accuracy[name]["clean"] for name in accuracy) > 0.85
    assert accuracy["robust"]["average"] > accuracy["standard"]["average"] + 0.15


@pytest.mark.parametrize(
    ("exits", "count"),
    [("exits=none", 1), ("exits=custom exits.taps=[0]", 2), ("exits=custom exits.taps=[0,1,2]", 4)],
)
def test_any_number_of_exits(exits, count, rdi, tmp_path):
    result = rdi(f"run run=runs/x {SMALL} {exits} data.size=16")
    assert result.status == 0, result.err
    record = records(tmp_path / "runs" / "x")["entropy__test-clean.json"]
    assert len(record["exit_accuracy"]) == count
    assert len(record["values"]) == count - 1
    assert len([name for name in records(tmp_path / "runs" / "x") if "single_exit" in name]) == count


def test_your_own_images(rdi, tmp_path):
    images(tmp_path / "pictures")
    result = rdi(f"run run=runs/x {FOLDER} suite=quick samples=4 threat.test_steps=1 ratios=5")
    assert result.status == 0, result.err
    manifest = json.loads((tmp_path / "runs" / "x" / "manifest.json").read_text())
    assert manifest["data"]["class_names"] == ["cat", "dog"]
    assert manifest["data"]["samples"] == {"train": 16, "calibration": 4, "test": 4}
    assert manifest["data"]["shape"] == [3, 20, 20]
    shutil.move(tmp_path / "pictures", tmp_path / "elsewhere")
    line = "attack run=runs/x suite=quick samples=4 threat.test_steps=2 overwrite=true"
    assert "set data.root=DIR" in rdi(line).errors[0]
    assert rdi(f"{line} data.root=elsewhere").status == 0


def test_the_python_interface_of_the_readme(demo):
    data = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 1, 28, 28, generator=data), torch.arange(6)
    model = api.load(demo)
    x_adv = api.attacks.MaxAverage(eps=8 / 255, step_size=2 / 255, steps=2)(model, x, y)
    assert x_adv.shape == x.shape
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6
    out = api.AdaptivePredictor(model, api.load_thresholds(demo))(x)
    assert out.labels.shape == out.exits.shape == out.macs.shape == (6,)
    assert out.labels.tolist() == model(x)[torch.arange(6), out.exits].argmax(dim=1).tolist()
    assert len(set(zip(out.exits.tolist(), out.macs.tolist(), strict=True))) == len(set(out.exits.tolist()))


def test_thresholds_saved_from_python_are_judged_from_the_command_line(rdi, demo):
    score = api.thresholds.Entropy()
    given = api.thresholds.ThresholdPolicy(score, [0.5] * (api.load(demo).exits - 1))
    assert api.save_thresholds(demo, "mine", given).values == given.values
    fitted = api.save_thresholds(demo, "cheap", api.thresholds.BudgetRule(score=score, share=0.8))
    for name, policy in (("mine", given), ("cheap", fitted)):
        assert api.load_thresholds(demo, name).values == policy.values
        result = rdi(f"evaluate run={demo} tracking=none thresholds={name}")
        assert result.status == 0, result.err
        assert f"exit policy {name}" in result.out
        bank = LogitsBank.load(demo / "banks" / "test-clean")
        record = read(demo / "evals" / f"{name}__test-clean.json", EvalRecord)
        assert record.accuracy == float(judge(bank.logits, bank.labels, policy).correct.double().mean())
    with pytest.raises(api.UserError, match="the thresholds are for 2 exits, the network has"):
        api.save_thresholds(demo, "short", api.thresholds.ThresholdPolicy(score, [0.5]))
    with pytest.raises(api.UserError, match="are named with letters"):
        api.save_thresholds(demo, "../up", given)


def test_mistakes_in_python_are_user_errors(demo):
    with pytest.raises(api.UserError, match="no run folder nowhere"):
        api.load("nowhere")
    with pytest.raises(api.UserError, match="stored: entropy"):
        api.load_thresholds(demo, "confidence")


def test_the_benchmark_measures_a_run_and_a_fresh_network(rdi, tmp_path, monkeypatch):
    # every group of rows, on less of each
    monkeypatch.setitem(machine.SIDE, "cpu", 256)
    monkeypatch.setattr(bench, "POINTS", 10)
    assert rdi(f"train run=runs/b data.size=16 {TINY}").status == 0
    shared = "threads=1 steps=1 batch_size=4 repeats=1 samples=8 batch_sizes=[4] "
    done = rdi(f"bench run=runs/b {shared} rows=[attacks,memory,training,roofline,thresholds,accuracy]")
    assert done.status == 0, done.err
    record = read(tmp_path / "reports" / "bench" / "bench.json", BenchRecord)
    assert {row.group for row in record.rows} == {
        *("attacks", "memory", "training", "roofline", "thresholds", "accuracy")
    }
    assert (record.environment.threads, record.repeats, record.exits) == (1, 1, 3)
    assert "max_avg, float32, folded" in done.out
    slow = emulated(torch.device("cpu"))
    assert ("max_avg, bf16, folded" in done.out) is not slow
    assert ("rows in bf16 are left out" in done.err) is slow
    assert (tmp_path / "reports" / "bench" / "table.md").read_text().count("|---") >= 6
    # quick: a row of inference is measured for seconds otherwise
    done = rdi("bench quick=true backbone=smallcnn shape=[1,16,16] threads=1 rows=[inference] name=fresh")
    assert done.status == 0, done.err
    assert "all at the last" in done.out


def test_the_record_of_the_worst_case_holds_how_images_of_one_exit_fare_at_the_others(rdi, demo):
    done = rdi("attack run=runs/demo suite=paper samples=16 threat.test_steps=1 threads=1 overwrite=true")
    assert done.status == 0, done.err
    done = rdi("evaluate run=runs/demo tracking=none")
    assert done.status == 0, done.err
    worst = read(demo / "evals" / "entropy__test-worst.json", WorstRecord)
    for k, row in enumerate(worst.transfer):
        assert row == read(demo / "evals" / f"entropy__test-single_exit{k}.json", EvalRecord).exit_accuracy
    assert len(worst.transfer) == 3
    assert "made on exit 2" in done.out
    assert (demo / "evals" / "entropy__test-early-exit.png").stat().st_size > 10_000


def test_attacks_on_a_policy_count_for_every_policy(rdi, demo):
    shared = "attack run=runs/demo threads=1 samples=16 threat.test_steps=2"
    done = rdi(f"{shared} suite=adaptive")
    assert done.status == 0, done.err
    done = rdi("evaluate run=runs/demo tracking=none")
    assert done.status == 0, done.err
    own = [line.split()[0] for line in done.out.splitlines() if line]
    assert {"soft", "confident_wrong", "routed", "slowdown", "joint"} <= set(own)
    other = rdi("evaluate run=runs/demo threshold=confidence tracking=none")
    assert other.status == 0, other.err
    assert re.search(r"^worst of 1 \+ 5 made for other +16 .*\nthresholds", other.out, re.M)
    assert rdi(f"{shared} attack=routed thresholds=confidence").status == 0
    other = rdi("evaluate run=runs/demo threshold=confidence tracking=none")
    assert "\nrouted " in other.out
    assert "\nrouted@entropy " in other.out
    assert (demo / "banks" / "test-routed@confidence" / "manifest.json").is_file()
    missing = rdi(f"{shared} attack=routed thresholds=margin")
    assert missing.status == 2
    assert "no thresholds 'margin'" in missing.errors[0]


def test_a_bank_of_other_images_is_not_taken_for_the_one_asked_for(rdi, demo):
    line = "attack run=runs/demo suite=quick samples=16 threat.test_steps=2 threads=1 overwrite="
    assert rdi(f"{line}true").status == 0
    again = rdi(f"{line}false")
    assert (again.status, "is there already" in again.err) == (0, True)
    path = demo / "banks" / "test-average"
    bank = LogitsBank.load(path)
    other = np.setdiff1d(np.arange(bank.indices.max() + 16), bank.indices)[:16]
    replace(bank, indices=other).save(path)
    result = rdi(f"{line}false")
    assert result.status == 2
    assert "of other images" in result.errors[0]


def test_the_demo_can_be_judged_by_every_suite(rdi):
    line = "run run=runs/full threads=1 suite=full tracking=none samples=4 batch_size=4 ratios=3 threat.test_steps=1 "
    done = rdi(line + "evaluations=1 calibration_samples=16 optim.epochs=null optim.iterations=1 attack.steps=1")
    assert done.status == 0, done.err
    assert "worst of 16" in done.out


def test_a_front_leaves_out_attacks_that_aim_at_one_policy(rdi, demo):
    def points():
        assert rdi("pareto runs=[runs/demo] ratios=5 tracking=none").status == 0
        return (demo.parent.parent / "reports" / "demo" / "points.csv").read_text()

    before = points()
    assert rdi("attack run=runs/demo attack=routed samples=16 threat.test_steps=3 threads=1").status == 0
    assert points() == before
