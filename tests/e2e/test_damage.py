"""Files of a run that are damaged or gone: noticed by name, with what to do next, or made again."""

import json
import random
import re
import shutil

import pytest

from helpers.commands import TINY
from rdi.folders import RunFolder
from rdi.records import Manifest, read, write

SHORT = f"{TINY} data.size=16"


def refused(result, *words):
    assert result.status == 2, (result.out, result.err)
    assert len(result.errors) == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.errors[0]


class Killed(BaseException):
    """What a test does to a command in its middle."""


@pytest.fixture
def half(rdi, monkeypatch):
    """A training that was killed before its last state was saved."""
    from rdi.runs import train

    save = train.FolderStore.save_state

    def killed(self, state):
        save(self, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.FolderStore, "save_state", killed)
        with pytest.raises(Killed):
            rdi(f"train run=runs/half {SHORT}")
    return RunFolder("runs/half")


def flip(path, seed):
    """Change one bit in the second half of a file, where its content is."""
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(4 * len(content), 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("missing", [["splits.npz", "trained_on.npz"], ["trained_on.npz"]])
def test_a_training_killed_before_all_its_files_were_written_makes_them_again(missing, rdi, monkeypatch):
    from rdi.runs import datasets, lineage

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((datasets, "save_splits") if "splits.npz" in missing else (lineage, "save")), killed)
        with pytest.raises(Killed):
            rdi(f"train run=runs/x {SHORT}")
    result = rdi("train run=runs/x tracking=none threads=1")
    assert result.status == 0, result.err
    assert ("runs/x/splits.npz was missing: made again from the seed" in result.err) == ("splits.npz" in missing)
    assert rdi(f"train run=runs/undisturbed {SHORT}").status == 0
    for name in ("splits.npz", "trained_on.npz"):
        made, wanted = (RunFolder(run).path / name for run in ("runs/x", "runs/undisturbed"))
        assert made.read_bytes() == wanted.read_bytes()
    assert rdi("attack run=runs/x attack=average samples=4 threat.test_steps=1").status == 0


def test_splits_that_were_removed_are_made_again_and_damaged_ones_refused(rdi, demo):
    splits = demo / "splits.npz"
    content = splits.read_bytes()
    splits.unlink()
    line = "attack run=runs/demo attack=average_fgsm samples=4"
    assert rdi(line).status == 0
    assert splits.read_bytes() == content
    flip(splits, 0)
    refused(rdi(f"{line} seed=1"), "splits.npz is", "damaged", "delete it, and the next command makes it again")
    splits.unlink()
    manifest = read(demo / "manifest.json", Manifest)
    write(demo / "manifest.json", {**json.loads((demo / "manifest.json").read_text()), "splits_sha256": "0" * 64})
    refused(rdi(f"{line} seed=1"), "the seed gives other splits than the run had")
    assert manifest.splits_sha256 is not None


@pytest.mark.parametrize("name", ["resume.pt", "best.safetensors", "last.safetensors"])
def test_a_flipped_bit_in_what_a_training_goes_on_with_is_noticed(name, rdi, half):
    content = (half.path / name).read_bytes()
    for seed in range(5):
        (half.path / name).write_bytes(content)
        flip(half.path / name, seed)
        refused(rdi("train run=runs/half tracking=none threads=1"), f"runs/half/{name} is damaged", "delete")
    (half.path / name).write_bytes(content)
    assert rdi("train run=runs/half tracking=none threads=1").status == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("checkpoint.safetensors", "attack run=runs/demo"),
        ("manifest.json", "attack run=runs/demo"),
        ("manifest.json", "report runs=[runs/demo]"),
        ("thresholds/entropy.json", "attack run=runs/demo"),
        ("thresholds/entropy.json", "report runs=[runs/demo]"),
        ("banks/test-clean/bank.npz", "evaluate run=runs/demo"),
        ("banks/test-clean/bank.npz", "report runs=[runs/demo]"),
        ("banks/test-clean/manifest.json", "evaluate run=runs/demo"),
        ("banks/test-clean/manifest.json", "report runs=[runs/demo]"),
        ("banks/calibration-clean/bank.npz", "pareto runs=[runs/demo]"),
        ("evals/entropy__test-clean.json", "report runs=[runs/demo]"),
        ("evals/entropy__test-worst.json", "report runs=[runs/demo]"),
    ],
)
def test_a_flipped_bit_in_a_finished_run_is_noticed(name, line, rdi, demo):
    flip(demo / name, 3)
    refused(rdi(line), f"runs/demo/{name}")


@pytest.mark.parametrize("line", ["evaluate run=runs/demo", "report runs=[runs/demo]", "pareto runs=[runs/demo]"])
@pytest.mark.parametrize("name", ["manifest.json", "bank.npz"])
def test_half_a_bank_is_damage_and_no_absence(name, line, rdi, demo):
    (demo / "banks" / "test-average" / name).unlink()
    refused(rdi(line), "runs/demo/banks/test-average", "delete")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["config"]["optim"].update(lr=0.3), "its identity is not that of its config"),
        (lambda m: m.update(seed=5), "its identity is not that of its config"),
        (lambda m: m["costs"]["macs"].__setitem__(0, 7), "costs.macs"),
        (lambda m: m["costs"].update(macs_plain_paper=7), "costs.macs_plain_paper"),
        (lambda m: m.update(exits=4), "costs.macs lists 3 numbers, and the network has 4 exits"),
        (lambda m: m.update(parameters=4), "parameters 4"),
    ],
)
def test_a_manifest_that_does_not_describe_its_network_is_refused(change, words, rdi, demo):
    content = json.loads((demo / "manifest.json").read_text())
    change(content)
    write(demo / "manifest.json", content)
    refused(rdi("attack run=runs/demo attack=average samples=4"), "runs/demo/manifest.json", words)


@pytest.mark.parametrize("line", ["evaluate run=runs/demo", "report runs=[runs/demo]", "pareto runs=[runs/demo]"])
def test_banks_of_another_network_are_refused_wherever_they_are_read(line, rdi, demo):
    assert rdi(f"train run=runs/plain exits=none {SHORT}").status == 0
    shutil.copy("runs/plain/manifest.json", demo / "manifest.json")
    for file in (demo / "thresholds").iterdir():
        shutil.copy("runs/plain/thresholds/entropy.json", file)
    refused(rdi(f"{line} tracking=none" if "report" not in line else line), "is of other weights: delete it")


def remedy(result):
    """The words behind `rdi` of the one command that a refusal names."""
    (found,) = re.findall(r"`rdi ([^`]*)`", result.errors[0])
    return found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("clean", {"accuracy": 0.999}),
        ("average", {"mean_macs": 12.0}),
        ("average", {"exit_share": [0.5, 0.25, 0.25]}),
        ("worst", {"accuracy": 0.999}),
        ("worst", {"samples": 3}),
    ],
)
def test_a_record_that_is_not_what_its_bank_says_is_refused(name, change, rdi, demo):
    path = demo / "evals" / f"entropy__test-{name}.json"
    right = path.read_bytes()
    write(path, {**json.loads(right), **change})
    report = rdi("report runs=[runs/demo]")
    refused(report, str(path), next(iter(change)), "rdi evaluate run=runs/demo")
    assert rdi(f"{remedy(report)} tracking=none").status == 0
    assert path.read_bytes() == right


def test_a_worst_case_that_is_gone_is_asked_for(rdi, demo):
    (demo / "evals" / "entropy__test-worst.json").unlink()
    report = rdi("report runs=[runs/demo]")
    refused(report, "entropy__test-worst.json", "rdi evaluate run=runs/demo")
    assert rdi(f"{remedy(report)} tracking=none").status == 0
    assert rdi("report runs=[runs/demo]").status == 0


@pytest.mark.parametrize("loss", ["deleted", "moved"])
def test_a_run_folder_that_goes_away_while_it_trains_is_said(loss, rdi, monkeypatch):
    from pathlib import Path

    from rdi.runs import train

    save = train.FolderStore.save_state

    def lost(self, state):
        save(self, state)
        shutil.move("runs/x", "elsewhere")
        if loss == "deleted":
            shutil.rmtree("elsewhere")

    monkeypatch.setattr(train.FolderStore, "save_state", lost)
    refused(rdi(f"train run=runs/x {SHORT}"), "runs/x was deleted, moved or replaced", "nothing more is written")
    assert not Path("runs/x").exists()


def test_a_page_of_another_run_is_not_taken_for_this_one(rdi, monkeypatch):
    """Trained anew and killed before the page: the page that is there is the old one's."""
    from pathlib import Path

    from rdi.runs import pipeline

    line = f"run run=runs/x {TINY} data.size=16 data.test=40 data.calibration=40 suite=quick samples=8 ratios=3"
    line += " threat.test_steps=1"
    first = rdi(line)
    assert first.status == 0, first.err
    assert first.err.splitlines()[0].startswith("runs/x is a new run: training begins with data=digits, ")
    assert "drawn already" in rdi(line).err
    old = Path("reports/x/index.html").read_bytes()

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "draw", killed)
        with pytest.raises(Killed):
            rdi(f"{line} seed=1 overwrite=true")
    result = rdi(f"{line} seed=1")
    assert result.status == 0, result.err
    assert "drawn already" not in result.err
    assert Path("reports/x/index.html").read_bytes() != old
    assert "drawn already" in rdi(f"{line} seed=1").err
    Path("reports/x/front.png").unlink()
    assert "drawn already" not in rdi(f"{line} seed=1").err
    assert Path("reports/x/front.png").is_file()


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("train threshold.scales=inf", "threshold.scales"),
        ("train threshold.offsets=[0,nan]", "threshold.offsets[1]"),
        ("train optim.lr=inf", "optim.lr"),
        ("run suite.average.step_size=-inf", "suite.average.step_size"),
        ("train threshold.scales=1e308", "threshold"),
    ],
)
def test_what_no_record_can_hold_is_refused_before_the_training(line, option, rdi):
    from pathlib import Path

    command, typed = line.split()
    refused(rdi(f"{command} run=runs/x {TINY} {typed}"), option)
    assert not Path("runs/x").exists()
