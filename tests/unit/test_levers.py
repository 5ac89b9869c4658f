"""The table of exit policies is made of records, one row each, and refuses what does not compare."""

import json

import pytest
from hydra import compose, initialize_config_dir

from helpers.commands import ROOT
from pages import levers
from rdi.cli._hydra import conf_dir
from rdi.config import canonised

OFFICIAL = ROOT / "results" / "official-resnet38"
NAME = "paper_resnet38"


def edited(path):
    """A record without its checksum, which an edit would break."""
    record = json.loads(path.read_text())
    record.pop("checksum")
    return record


@pytest.fixture
def folder(tmp_path):
    """Two policies with the records of the released network."""
    (tmp_path / "thresholds").mkdir()
    (tmp_path / "evals").mkdir()
    for name, worst in ((NAME, 0.154), ("other", 0.3)):
        stored = edited(OFFICIAL / "thresholds" / f"{NAME}.json")
        if name == "other":
            rule = {**stored["rule"], "_target_": "rdi.thresholds.ShareRule", "offsets": 0.0}
            stored = {
                **stored,
                "name": name,
                "rule": {"_target_": "rdi.thresholds.AgreementRule", "agreeing": 2, "rule": rule},
            }
        (tmp_path / "thresholds" / f"{name}.json").write_text(json.dumps(stored))
        for attack in ("clean", "worst", f"soft@{NAME}", f"slowdown@{NAME}"):
            record = edited(OFFICIAL / "evals" / f"{NAME}__test-{attack}.json")
            record |= {"attack": attack.replace(NAME, name)} if attack != "worst" else {"accuracy": worst}
            (tmp_path / "evals" / f"{name}__test-{attack.replace(NAME, name)}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_most_robust_policy_stands_first(folder):
    lines = levers.table(folder).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert cells[0][0] == "2 exits in a row must agree; entropy, equal shares"
    assert cells[1][0] == "entropy, equal shares with offsets by hand"
    assert [row[2] for row in cells] == ["30.0", "15.4"]
    assert cells[1][1:] == ["82.4", "15.4", "13.3-17.8", "soft 18.8", "14.7", "-11.7", "8,000, 1,000"]
    assert "right under all 20 attacks" in lines[-1]


def test_policies_that_were_judged_under_different_attacks_do_not_compare(folder):
    path = folder / "evals" / "other__test-worst.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "attacks": record["attacks"][1:]}))
    with pytest.raises(ValueError, match="not judged under the same attacks"):
        levers.table(folder)
    (folder / "evals" / "other__test-soft@other.json").unlink()
    (folder / "evals" / "other__test-slowdown@other.json").unlink()
    with pytest.raises(ValueError, match="nobody has attacked the exit policy other"):
        levers.table(folder)


def test_every_policy_of_the_script_says_what_it_does(monkeypatch):
    files = sorted((ROOT / "dev" / "levers" / "threshold").glob("*.yaml"))
    monkeypatch.setenv("RDI_CONF_DIR", str(ROOT / "dev" / "levers"))
    found = {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for file in files:
            cfg = compose(overrides=[f"+threshold={file.stem}", f"hydra.searchpath=[file://{ROOT}/dev/levers]"])
            from omegaconf import OmegaConf

            found[file.stem] = levers.describe_rule(canonised(OmegaConf.to_container(cfg.threshold, resolve=True)))
    assert found["last_exit"] == "the last exit for all"
    assert found["within"] == "entropy, share 0.85 on clean images"
    assert found["agreement_ensemble_within"] == (
        "2 exits in a row must agree; running geometric mean of the exits; entropy, share 0.85 on clean images"
    )
    assert len({*found.values()}) == len(files)
