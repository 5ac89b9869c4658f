"""What command lines compose to stays as it is: `python tests/unit/test_golden.py` writes what is meant to change.

golden/composed.json keeps, for each line, the hash of every top-level option whose value is not that of the bare
command; golden/*.yaml the whole of a few, to be read.
"""

import hashlib
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rdi.cli import _edge, _schema
from rdi.cli._hydra import conf_dir
from rdi.report.hints import settled

HERE = Path(__file__).parent / "golden"
TYPED = "threat.eps=0.03 threat.step_size=0.007 threat.test_steps=20"
"""What a finished run says of its threat model."""
BARE = {
    "train": "",
    "run": "",
    "attack": f"run=runs/x {TYPED} threat.steps=20",
    "evaluate": "run=runs/x",
    "health": f"run=runs/x {TYPED}",
    "import": "run=runs/x",
    "bench": "",
    "pareto": "runs=[runs/x]",
    "report": "runs=[runs/x]",
    "list": "",
    "table": "name=smallcnn",
}
ATTACKS = (
    *(
        f"{span}{solver}"
        for span in ("single", "main", "average", "max_avg")
        for solver in ("", "_fgsm", "_wrm", "_apgd")
    ),
    *(
        f"{name}{solver}"
        for name in ("soft", "routed", "confident_wrong", "slowdown", "joint")
        for solver in ("", "_apgd")
    ),
    *("targeted", "square", "autoattack", "autoattack_mean", "autoattack_exits"),
)
LINES = {
    "train": [
        *(f"attack={name}" for name in ("average_apgd", "max_avg_wrm", "single_fgsm", "soft_apgd")),
        *(f"data={name}" for name in ("fashion_mnist", "cifar10", "cifar100", "cifar10_jpeg", "svhn")),
        *(f"defense={name}" for name in ("fast", "paired", "carried")),
        "backbone=resnet38 attack=max_avg",
        "backbone=mobilenetv2 exits=lean defense=paired defense.terms.1.weight=0.5 optim=robust optim.epochs=20",
        "data=mnist attack=max_avg attack.steps=7 attack.step_size=0.08 attack.keep=last optim=fast precision=bf16",
        "data=mnist threat.eps=0.2 attack=average_apgd attack.rule.rho=0.5",
        "threat.eps='${px:8}' attack=main_fgsm",
        "exits=none attack=main compression=atmc compression.ratio=0.1 compression.start=runs/x optim.lr=0.005",
        "backbone=resnet38 exits=none compression=rn38_r004",
        "data=imagefolder data.root=/images data.size=32 backbone=resnet38_w20",
        "threshold=ensemble threshold@threshold.rule=budget threshold.rule.share=0.7",
    ],
    "run": [
        # every attack file at once, as one suite
        "suite=quick " + " ".join(f"+attack@suite.with_{name}={name}" for name in ATTACKS),
        *(f"suite={name}" for name in ("adaptive", "attacks", "autoattack", "exhaustive")),
        "suite=full suite.soft_apgd.rule.momentum=0.5 suite.average.steps=3",
        "backbone=resnet38 suite=full threat.test_steps=7",
        "sweep=search",
        "sweep=alpha",
        "data=mnist backbone=smallcnn threshold=paper_smallcnn optim=fast engine.precision=bf16 samples=2000",
    ],
    "attack": [
        *(f"attack={name}" for name in ("max_avg_fgsm", "main_wrm", "autoattack")),
        "suite=full",
        "attack=max_avg attack.steps=100 label=long engine.precision=bf16",
    ],
    "import": [
        "checkpoint=x backbone=resnet38 data=cifar10 threshold=paper_resnet38",
        "weights=x data=mnist exits=lean",
    ],
    "bench": ["backbone=mobilenetv2 data=cifar10", "run=runs/x quick=true"],
    "evaluate": ["threshold=risk", "sweep=thresholds"],
}
WHOLE = {"train": "train data=mnist attack=average_apgd", "run": "run suite=full", "attack": "attack attack=soft_apgd"}
"""File in golden/ -> line that is kept whole."""


@pytest.fixture(autouse=True)
def without_data_folder(monkeypatch):
    """No RDI_DATA of whoever runs the tests."""
    monkeypatch.delenv("RDI_DATA", raising=False)


def split(line):
    """The words of a line as a shell splits them."""
    import shlex

    return shlex.split(line)


def composed(command, line):
    """The resolved config of a command line; initialize_config_dir is the caller's."""
    typed = split(line)
    keys = {word.partition("=")[0] for word in typed}
    words = [*(word for word in split(BARE[command]) if word.partition("=")[0] not in keys), *typed]
    cfg = compose(command, overrides=settled(words))
    return _edge.resolved(_schema.validated(cfg))


def hashes(config):
    """Top-level option -> hash of its value."""
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
        for key, value in config.items()
    }


def everything():
    """Command -> the hashes of its bare config under "", and under each line of those that it changes."""
    _schema.register()
    found, whole = {}, {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for command in BARE:
            bare = hashes(composed(command, ""))
            found[command] = {"": bare}
            for line in LINES.get(command, []):
                mine = hashes(composed(command, line))
                found[command][line] = {
                    key: mine.get(key) for key in {**bare, **mine} if mine.get(key) != bare.get(key)
                }
        for name, line in WHOLE.items():
            command, _, typed = line.partition(" ")
            whole[name] = f"# rdi {line}\n{OmegaConf.to_yaml(composed(command, typed), sort_keys=True)}"
    return found, whole


def test_command_lines_compose_to_what_they_did():
    found, whole = everything()
    assert found == json.loads((HERE / "composed.json").read_text())
    assert {path.stem: path.read_text() for path in HERE.glob("*.yaml")} == whole
    assert sum(len(lines) for lines in found.values()) > 40


if __name__ == "__main__":
    import os

    os.environ.pop("RDI_DATA", None)
    HERE.mkdir(exist_ok=True)
    made, texts = everything()
    (HERE / "composed.json").write_text(json.dumps(made, indent=0) + "\n")
    for name, text in texts.items():
        (HERE / f"{name}.yaml").write_text(text)
