"""One network under several threat models, attacks of several strengths and for several policies, by the commands."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from helpers.mistakes import refused
from rdi.folders import RunFolder
from rdi.records import BankManifest, EvalRecord, Thresholds, WorstRecord, read, write
from rdi.storage import sha256

ATTACK = "attack run=runs/demo threat.test_steps=1 threads=1 samples=16"
EVALUATE = "evaluate run=runs/demo tracking=none"


def worst(demo, name):
    return read(demo / "evals" / f"entropy__test-worst{name}.json", WorstRecord)


def test_an_attack_at_another_eps_stands_beside_and_every_caption_is_of_the_banks(rdi, demo, tmp_path):
    for eps in ("0.3", "'${px:8}'"):
        assert rdi(f"{ATTACK} attack=average threat.eps={eps}").status == 0
    assert set(RunFolder(demo).banks("test")) == {"clean", "average", "average@eps0.0313725", "average@eps0.3"}
    said = rdi(EVALUATE)
    assert said.status == 0, said.err
    captions = re.findall(r"L-infinity eps (\S+), 1 step", " ".join(said.out.split()))
    assert captions == ["0.1", "8/255", "0.3"]
    assert all(len(set(re.findall(r"L-infinity eps ([^ ,:]+)", line))) <= 1 for line in said.out.splitlines())
    assert re.search(r"attack +eps 0 +eps 8/255 +eps 0.1 +eps 0.3\n", said.out)
    assert "\n\nexpected from " in said.out
    assert [(worst(demo, name).eps, worst(demo, name).attacks) for name in ("", "@eps0.3")] == [
        (0.1, ("average",)),
        (0.3, ("average@eps0.3",)),
    ]
    assert rdi("report runs=[runs/demo] ratios=3").status == 0
    out = tmp_path / "reports" / "demo"
    page = (out / "index.html").read_text()
    assert "Accuracy against eps" in page
    for caption in re.findall(r"<figcaption[^>]*>(.*?)</figcaption>|<p[^>]*>(.*?)</p>", page):
        for sentence in "".join(caption).split("; "):
            assert len(set(re.findall(r"L-infinity eps ([0-9./]+)", sentence))) <= 1, sentence
    assert "eps 0.1" in json.loads((out / "summary.json").read_text())["conditions"][0]
    assert rdi("pareto runs=[runs/demo] ratios=3 threat.eps=0.3 tracking=none name=far").status == 0
    for file in ("summary.json", "table.md", "sources.json"):
        text = (tmp_path / "reports" / "far" / file).read_text()
        assert "eps 0.3" in text, file
        assert "eps 0.1" not in text, file


def test_a_run_that_was_attacked_elsewhere_only_is_captioned_by_that(rdi, demo, tmp_path):
    shutil.rmtree(demo / "banks" / "test-average")
    shutil.rmtree(demo / "evals")
    assert rdi(f"{ATTACK} attack=main threat.eps=0.3").status == 0
    assert "L-infinity eps 0.3" in rdi(EVALUATE).out
    assert rdi("report runs=[runs/demo] ratios=3").status == 0
    for file in ("summary.json", "table.md", "index.html"):
        text = (tmp_path / "reports" / "demo" / file).read_text()
        assert "eps 0.3" in text, file
        assert "L-infinity eps 0.1" not in text, file


def test_runs_under_several_threat_models_are_no_front(rdi, demo, tmp_path):
    shutil.copytree(demo, tmp_path / "runs" / "other")
    shutil.rmtree(tmp_path / "runs" / "other" / "banks" / "test-average")
    assert rdi(f"{ATTACK.replace('demo', 'other')} attack=average threat.eps=0.3").status == 0
    both = "pareto 'runs=[runs/demo,runs/other]' ratios=3 tracking=none"
    refused(rdi(both), "runs/demo was attacked at eps 0.1, runs/other at eps 0.3", "threat.eps=")
    refused(rdi(f"{both} threat.eps=0.3"), "run `rdi attack run=runs/demo threat.eps=0.3`")
    assert rdi(f"{ATTACK} attack=average threat.eps=0.3").status == 0, "the remedy exists"
    assert rdi(f"{both} threat.eps=0.3").status == 0
    refused(rdi(f"{both} threat.eps=2"), "threat.eps must be in [0, 1]")


def test_two_strengths_of_one_attack_are_kept_apart_and_count_together(rdi, demo):
    refused(rdi(f"{ATTACK} attack=average attack.steps=2"), "made with other settings", "overwrite=true", "label=")
    assert rdi(f"{ATTACK} attack=average attack.steps=2 label=long").status == 0
    assert rdi(EVALUATE).status == 0
    assert worst(demo, "").attacks == ("average", "average@long")
    # a table of these thresholds would show two rows of one name
    refused(rdi(f"{ATTACK} attack=average label=entropy"), "label=entropy is the name of thresholds")


def test_an_attack_on_fewer_images_neither_blocks_nor_shrinks_the_worst_case_of_the_others(rdi, demo):
    before = worst(demo, "")
    assert rdi(f"{ATTACK.replace('samples=16', 'samples=5')} attack=average_fgsm").status == 0
    said = rdi(EVALUATE)
    assert said.status == 0, said.err
    assert re.search(r"average_fgsm +5 ", said.out)
    assert re.search(r"average +16 ", said.out)
    found = worst(demo, "")
    assert (found.samples, found.attacks, found.fewer) == (16, ("average",), ("average_fgsm",))
    assert (found.accuracy, found.common_samples) == (before.accuracy, 5)
    assert "worst of 1 is on 16 images; without average_fgsm, made of fewer: all of them together leave" in " ".join(
        said.out.split()
    )
    assert rdi("report runs=[runs/demo] ratios=3").status == 0


def test_banks_made_for_other_thresholds_count_and_are_named(rdi, demo):
    assert rdi(f"{EVALUATE} threshold=margin").status == 0
    assert rdi(f"{ATTACK} attack=soft thresholds=margin").status == 0
    said = rdi(EVALUATE)
    assert said.status == 0, said.err
    assert "worst of 1 + 1 made for other" in said.out, "the rest of the cell may be on the next line"
    found = worst(demo, "")
    assert (found.attacks, found.others) == (("average", "soft@margin"), ("soft@margin",))
    alone = [read(demo / "evals" / f"entropy__test-{name}.json", EvalRecord).accuracy for name in found.attacks]
    assert found.accuracy <= min(alone)
    margin = rdi(f"{EVALUATE} threshold=margin")
    assert re.search(r"worst of 2 +16 ", margin.out), "for its own thresholds it is no stranger"


def test_evaluate_judges_by_the_rule_that_the_run_was_made_with(rdi, demo):
    manifest = json.loads((demo / "manifest.json").read_text())
    assert manifest["choices"]["threshold"] == "entropy"
    made = "run run=runs/b tracking=none threads=1 evaluations=1 calibration_samples=16 optim.epochs=null"
    made += " optim.iterations=2 attack.steps=1 suite=quick samples=8 threat.test_steps=1 threshold=margin"
    assert rdi(f"{made} threshold.scales=[0.5,0.5] stages=[train,attack,evaluate]").status == 0
    assert {path.name for path in RunFolder("runs/b").path.glob("thresholds/*")} == {"margin.json"}
    said = rdi("evaluate run=runs/b tracking=none")
    assert "exit policy margin" in said.out
    stored = read(RunFolder("runs/b").thresholds("margin"), Thresholds)
    assert stored.rule["scales"] == [0.5, 0.5]
    refused(rdi("evaluate run=runs/b threshold=entropy thresholds=margin"), "give one of them")
    refused(rdi("evaluate run=runs/b thresholds=budget"), "has no thresholds 'budget'; stored: margin")


def test_overwrite_replaces_what_was_asked_for_only(rdi, demo):
    folder = RunFolder(demo)
    before = {path: (path.stat().st_mtime_ns, sha256(path)) for path in demo.glob("banks/*/*")}
    remade = rdi(f"{ATTACK} attack=average seed=5 overwrite=true")
    assert remade.status == 0, remade.err
    changed = {path.parent for path, was in before.items() if (path.stat().st_mtime_ns, sha256(path)) != was}
    assert changed == {folder.bank("test", "average")}
    assert read(folder.bank("test", "average") / "manifest.json", BankManifest).seed == 5


@pytest.mark.parametrize("threshold", ["entropy", "budget threshold.share=0.9"])
def test_the_remedy_of_a_stale_record_exists(rdi, demo, threshold):
    judged = rdi(f"{EVALUATE} threshold={threshold}")
    assert judged.status == 0, judged.err
    shutil.rmtree(demo / "banks" / "test-average")
    assert rdi(f"{ATTACK} attack=average seed=5").status == 0
    for _ in range(2):  # a record of each policy
        said = rdi("report runs=[runs/demo] ratios=3")
        if said.status == 0:
            break
        remedy = re.search(r"run `rdi (evaluate [^`]*)` again", said.err)
        assert rdi(f"{remedy[1]} tracking=none").status == 0
    assert rdi("report runs=[runs/demo] ratios=3").status == 0


def test_a_worst_case_over_a_bank_that_is_gone_is_not_shown(rdi, demo):
    assert rdi(f"{ATTACK} attack=average_fgsm").status == 0
    assert rdi(EVALUATE).status == 0
    shutil.rmtree(demo / "banks" / "test-average_fgsm")
    refused(rdi("report runs=[runs/demo] ratios=3"), "counts average_fgsm", "rdi evaluate run=runs/demo thresholds=")


def test_rows_do_not_hang_on_the_times_of_files(rdi, demo, tmp_path):
    shutil.copytree(demo / "banks" / "test-clean", tmp_path / "clean")
    shutil.rmtree(demo / "banks" / "test-clean")
    without = rdi(EVALUATE).out
    assert "\nclean " not in without
    assert "no row of clean images: runs/demo/banks/test-clean is missing; any rdi attack makes it" in " ".join(
        without.split()
    )
    shutil.copytree(tmp_path / "clean", demo / "banks" / "test-clean")
    said = rdi(EVALUATE).out
    assert said.index("\nclean ") < said.index("\naverage ")


def test_thresholds_that_cannot_be_certified_are_announced_once(rdi, demo):
    said = rdi(f"{EVALUATE} threshold=risk threshold.alpha=1e-6")
    assert said.status == 0, said.err
    assert said.err.count("these data certify no early exit") == 1
    assert "without a single loss it takes 2302584 calibration images" in said.err


def test_thresholds_and_banks_of_elsewhere_are_told_apart(rdi, demo):
    record = read(demo / "thresholds" / "entropy.json", Thresholds)
    write(demo / "thresholds" / "entropy.json", replace(record, checkpoint_sha256="0" * 64))
    refused(rdi(f"{ATTACK} attack=soft"), "entropy.json is of other weights")
    write(demo / "thresholds" / "entropy.json", record)
    shutil.copytree(demo / "banks" / "test-average", demo / "banks" / "test-average.bak")
    for command in (EVALUATE, "pareto runs=[runs/demo] ratios=3 tracking=none"):
        refused(rdi(command), "test-average.bak holds the bank test-average")
