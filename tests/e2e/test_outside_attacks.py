"""Square, AutoAttack, Transfer and HopSkipJump through the command line, to the table of `rdi evaluate`."""

import json
import re
import sys

import pytest

from helpers.commands import TINY
from helpers.mistakes import refused
from rdi.banks import LogitsBank
from rdi.records import WorstRecord, read

FEW = "run=runs/demo threads=1 threat.eps=0.3 samples=2"


def bank(tmp_path, name):
    """Manifest of a bank of the demo run."""
    return json.loads((tmp_path / "runs" / "demo" / "banks" / f"test-{name}" / "manifest.json").read_text())


@pytest.fixture
def fresh(demo, tmp_path):
    """The demo run without the banks of other attacks, which hold more images."""
    for path in (tmp_path / demo / "banks" / "test-average").iterdir():
        path.unlink()
    (tmp_path / demo / "banks" / "test-average").rmdir()
    return tmp_path / demo


def test_square_is_aimed_at_the_policy_and_judged(rdi, fresh, tmp_path):
    result = rdi(f"attack {FEW} attack=square attack.queries=20")
    assert result.status == 0, result.err
    settings = bank(tmp_path, "square@entropy@eps0.3")["settings"]
    assert (settings["attack"], settings["queries"], settings["eps"]) == ("Square", 20, 0.3)
    judged = rdi("evaluate run=runs/demo tracking=none")
    assert judged.status == 0, judged.err
    assert re.search(r"^square@eps0\.3\s+2\b", judged.out, re.M)


def test_autoattack_is_recorded_with_its_version_and_its_parts_are_not_called_so(rdi, fresh, tmp_path):
    package = pytest.importorskip("pyautoattack")
    result = rdi(f"attack {FEW} attack=autoattack")
    assert result.status == 0, result.err
    settings = bank(tmp_path, "autoattack@entropy@eps0.3")["settings"]
    assert (settings["attack"], settings["version"]) == ("AutoAttack", "standard")
    assert settings["package"] == f"pyautoattack {package.__version__}"
    result = rdi(f"attack {FEW} attack=autoattack_mean 'attack.attacks=[apgd-ce]'")
    assert result.status == 0, result.err
    assert "autoattack" not in result.err.lower()
    assert bank(tmp_path, "apgd-ce_mean@eps0.3")["settings"]["attack"] == "apgd-ce"
    judged = rdi("evaluate run=runs/demo tracking=none")
    assert judged.status == 0, judged.err
    assert (fresh / "evals" / "entropy__test-autoattack@entropy@eps0.3.json").is_file()
    assert (fresh / "evals" / "entropy__test-apgd-ce_mean@eps0.3.json").is_file()


def test_transfer_from_a_static_network_of_the_same_backbone(rdi, fresh, tmp_path):
    assert rdi(f"train run=runs/static exits=none defense=standard {TINY}").status == 0
    missing = rdi(f"attack {FEW} attack=transfer")
    assert missing.status == 2
    assert "attack.surrogate is missing: give attack.surrogate=..." in missing.errors[0]
    absent = rdi(f"attack {FEW} attack=transfer attack.surrogate=runs/nowhere")
    assert absent.status == 2
    assert "runs/nowhere" in absent.errors[0]
    itself = rdi(f"attack {FEW} attack=transfer attack.surrogate=runs/demo")
    assert itself.status == 2
    assert "demo is the attacked network itself: attack it without transfer" in itself.errors[0]
    result = rdi(f"attack {FEW} attack=transfer attack.surrogate=runs/static attack.inner.steps=2")
    assert result.status == 0, result.err
    settings = bank(tmp_path, "transfer@eps0.3")["settings"]
    trained = json.loads((tmp_path / "runs" / "static" / "manifest.json").read_text())
    assert (settings["surrogate"], settings["surrogate_sha256"]) == ("static", trained["checkpoint_sha256"])
    assert (settings["inner.attack"], settings["inner.steps"], settings["eps"]) == ("MainExit", 2, 0.3)
    judged = rdi("evaluate run=runs/demo tracking=none")
    assert judged.status == 0, judged.err
    assert (fresh / "evals" / "entropy__test-transfer@eps0.3.json").is_file()


def test_an_attack_on_labels_alone_is_a_bank_like_any_other(rdi, demo, monkeypatch):
    pytest.importorskip("art")
    decision = "attack run=runs/demo attack=decision attack.queries=60 samples=16 threads=1 tracking=none"
    made = rdi(decision)
    assert made.status == 0, made.err
    bank = LogitsBank.load(demo / "banks" / "test-decision@entropy")
    settings = bank.manifest.settings
    assert (settings["attack"], settings["queries"], settings["eps"]) == ("HopSkipJump", 60, 0.1)
    assert settings["package"].startswith("adversarial-robustness-toolbox 1.")
    assert bank.manifest.linf <= 0.1 + 1e-6
    assert "is there already" in rdi(decision).err
    assert rdi(f"{decision} overwrite=true").status == 0
    assert (LogitsBank.load(demo / "banks" / "test-decision@entropy").logits == bank.logits).all(), "seeded"
    said = rdi("evaluate run=runs/demo tracking=none")
    assert re.search(r"\ndecision +16 ", said.out)
    worst = read(demo / "evals" / "entropy__test-worst.json", WorstRecord)
    assert worst.attacks == ("average", "decision@entropy")
    refused(rdi(f"{decision} threat.norm=l2 threat.eps=1 threat.step_size=0.1"), "searches L-infinity balls only")
    monkeypatch.setitem(sys.modules, "art", None)
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    refused(rdi(f"{decision} label=other"), "pip install 'rdi[decision]'")
