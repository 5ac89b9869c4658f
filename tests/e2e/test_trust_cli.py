"""A hostile run folder, opened with every command: it runs nothing, writes nothing elsewhere, shows nothing odd."""

import json
import shutil
from pathlib import Path

import pytest

import rdi as package
from helpers.commands import TINY

COMMANDS = {
    "pareto": "pareto runs=[runs/demo] tracking=none ratios=3",
    "report": "report runs=[runs/demo] ratios=3",
    "attack": "attack run=runs/demo attack=average samples=4 threat.test_steps=1",
    "evaluate": "evaluate run=runs/demo tracking=none",
    "health": "health run=runs/demo quick=true samples=4",
    "export": "export run=runs/demo samples=4",
    "train": "train run=runs/demo tracking=none",
    "run": f"run run=runs/demo {TINY} suite=quick samples=16 threat.test_steps=1 stages=[attack,evaluate]",
    "start": f"train run=runs/other {TINY} compression=l0 compression.start=runs/demo",
    "surrogate": "attack run=runs/demo attack=transfer attack.surrogate=runs/demo samples=4 threat.test_steps=1",
}
CANARY = {"_target_": "torch.utils.collect_env.run", "command": "touch canary"}


def edit(path, change):
    """Change a JSON file of a run as whoever sends it to somebody would: without a checksum that tells."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_manifest_names(command, demo, rdi):
    if command in ("train", "run"):
        (demo / "done").unlink()
    edit(demo / "manifest.json", lambda m: m["config"]["backbone"].update(dropout=CANARY))
    result = rdi(COMMANDS[command].replace("stages=[attack,evaluate]", "stages=[train,attack,evaluate]"))
    assert result.status == 2, result.err
    assert "backbone.dropout names torch.utils.collect_env.run" in result.errors[-1]
    assert "Traceback" not in result.err
    assert not Path("canary").exists()
    assert not Path("reports").exists()


@pytest.mark.parametrize("command", ["attack", "health", "report"])
@pytest.mark.parametrize("field", ["policy", "rule"])
def test_no_command_runs_what_thresholds_name(command, field, demo, rdi):
    edit(demo / "thresholds" / "entropy.json", lambda t: t.update({field: {**t["rule"], "score": CANARY}}))
    result = rdi(COMMANDS[command])
    assert result.status == 2, result.err
    assert f"entropy.json: {field}.score names torch.utils.collect_env.run" in result.errors[-1]
    assert not Path("canary").exists()


def test_python_runs_nothing_either(demo):
    edit(demo / "thresholds" / "entropy.json", lambda t: t.update(policy=CANARY))
    with pytest.raises(package.UserError, match="policy names"):
        package.load_thresholds(demo)
    edit(demo / "manifest.json", lambda m: m["config"].update(normalise=CANARY))
    with pytest.raises(package.UserError, match="normalise names"):
        package.load(demo, "cpu")
    assert not Path("canary").exists()


def test_thresholds_that_describe_no_policy_are_called_by_their_name(demo):
    edit(demo / "thresholds" / "entropy.json", lambda t: t["policy"].update(values=["x", "y"]))
    with pytest.raises(package.UserError, match="the thresholds entropy: "):
        package.load_thresholds(demo)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A backbone of the user's own, and the config folder that offers it as backbone=mine."""
    (tmp_path / "my_nets.py").write_text(
        "from rdi.backbones import smallcnn\n\n\ndef mine(shape, classes):\n    return smallcnn(shape, classes)\n"
    )
    choice = tmp_path / "mine" / "backbone" / "mine.yaml"
    choice.parent.mkdir(parents=True)
    choice.write_text("# mine\n_target_: my_nets.mine\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_run_of_a_plugin_needs_trust_and_says_so(plugin, rdi, tmp_path):
    train = f"run --config-dir mine backbone=mine data=digits run=runs/mine {TINY} suite=quick samples=16"
    result = rdi(f"{train} threat.test_steps=1 stages=[train,attack,evaluate]")
    assert result.status == 0, result.err
    for line in ("evaluate run=runs/mine tracking=none", "pareto runs=[runs/mine] tracking=none ratios=3"):
        refused = rdi(line)
        assert refused.status == 2
        assert "names my_nets.mine" in refused.errors[0]
        assert refused.errors[0].endswith("add trust=[my_nets]")
        assert rdi(f"{line} trust=[my_nets]").status == 0
    with pytest.raises(package.UserError, match=r"add trust=\[my_nets\]"):
        package.load("runs/mine", "cpu")
    assert package.load("runs/mine", "cpu", trust=["my_nets"]).exits == 3


PARTS = """
from dataclasses import dataclass
import torch
from rdi.attacks import ObjectiveAttack
from rdi.backbones import smallcnn
from rdi.exits import PoolLinear

class Largest:
    higher_is_surer = True
    def __call__(self, logits):
        return logits.amax(dim=-1)

class NoOrder:
    def __call__(self, logits):
        return logits.amax(dim=-1)

class NoReduction(Largest):
    def __call__(self, logits):
        return logits

class NotANumber(Largest):
    def __call__(self, logits):
        return logits.sum(dim=-1) * torch.nan

@dataclass(kw_only=True)
class Mean(ObjectiveAttack):
    def objective(self):
        return self
    def exits(self, total):
        return list(range(total))
    def __call__(self, model_or_logits, y, *more):
        if isinstance(model_or_logits, torch.Tensor):
            return model_or_logits.mean()
        return super().__call__(model_or_logits, y, *more)

def eleven(shape, classes):
    return smallcnn(shape, classes + 1)

class Detached(PoolLinear):
    def forward(self, x):
        return super().forward(x.detach())
"""
CHOICES = {
    **{
        f"threshold/{name.lower()}": f"_target_: rdi.thresholds.ShareRule\nscore: {{_target_: my_parts.{name}}}\n"
        for name in ("Largest", "NoOrder", "NoReduction", "NotANumber")
    },
    "attack/mean": "_target_: my_parts.Mean\neps: ${threat.eps}\nstep_size: ${threat.step_size}\nsteps: 1\n",
    "backbone/eleven": "_target_: my_parts.eleven\n",
    "exits/detached": "_target_: rdi.exits.CustomExits\ntaps: [0]\nheads:\n  - "
    "{_target_: my_parts.Detached, _partial_: true}\n",
}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Parts of the user's own, and the folder that offers them."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    for name, content in CHOICES.items():
        file = tmp_path / "mine" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# mine\n{content}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RDI_CONF_DIR", str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate run=runs/demo tracking=none threshold=noorder", "has no higher_is_surer"),
        ("evaluate run=runs/demo tracking=none threshold=noreduction", "NoReduction must map (300, 3, 10) to (300, 3)"),
        ("evaluate run=runs/demo tracking=none threshold=notanumber", "NotANumber returns NaN"),
        ("attack run=runs/demo attack=mean samples=4", "an objective must return a number per image, (4,), not ()"),
        (f"train run=runs/x backbone=eleven {TINY}", "this backbone is for 11 classes, and the images are of 10"),
    ],
)
def test_a_part_that_breaks_its_contract_is_refused_in_one_line(line, said, parts, demo, rdi):
    result = rdi(line)
    assert (result.status, len(result.errors)) == (2, 1), result.err
    assert said in result.errors[0]
    assert not Path("runs/x/manifest.json").exists()


def test_a_score_of_the_users_judges_with_trust(parts, demo, rdi):
    assert rdi("evaluate run=runs/demo tracking=none threshold=largest").status == 0
    assert rdi("evaluate run=runs/demo tracking=none thresholds=largest").errors[0].endswith("add trust=[my_parts]")
    for line in ("evaluate run=runs/demo tracking=none", "attack run=runs/demo attack=routed threat.test_steps=1"):
        result = rdi(f"{line} thresholds=largest trust=[my_parts]")
        assert result.status == 0, result.err


def test_a_head_that_is_detached_from_the_input_is_red_in_one_line(parts, rdi):
    made = rdi(f"run exits=detached run=runs/x {TINY} suite=quick samples=8 threat.test_steps=1 stages=[train]")
    assert made.status == 0, made.err
    result = rdi("health run=runs/x quick=true samples=8 strict=true trust=[my_parts]")
    assert result.status == 1
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("zero gradients")]
    assert line.startswith("zero gradients: RED: images without a gradient, per exit: clean 100.0/0.0")


@pytest.mark.parametrize(
    "line", ["pareto runs=[runs/demo] tracking=none", "report runs=[runs/demo]", "bench rows=[thresholds]"]
)
@pytest.mark.parametrize("name", ["../outside", "/tmp/rdi-outside", "a/b", ".."])
def test_reports_stay_in_reports(line, name, demo, rdi, tmp_path):
    before = sorted(tmp_path.parent.rglob("*"))
    result = rdi(f"{line} name={name}")
    assert result.status == 2
    assert "name must be a plain name" in result.errors[0]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_search_stays_in_reports(rdi, tmp_path):
    line = f"run -m hydra/sweeper=tune hydra.sweeper.study=../outside hydra.sweeper.n_trials=1 {TINY} 'seed=range(0,2)'"
    result = rdi(line)
    assert result.status == 2
    assert "hydra.sweeper.study must be a plain name" in result.errors[0]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", [".lock", "log.txt", "evals", "banks"])
def test_a_command_that_writes_refuses_links_out_of_the_run(name, demo, rdi, tmp_path):
    outside = tmp_path / "outside"
    if (demo / name).is_dir():
        shutil.move(demo / name, outside)
    else:
        outside.write_text("precious")
        (demo / name).unlink(missing_ok=True)
    (demo / name).symlink_to(outside)
    result = rdi(COMMANDS["evaluate"])
    assert result.status == 2
    assert "is a link out of its folder" in result.errors[0]
    assert outside.is_dir() or outside.read_text() == "precious"


def test_a_name_with_escape_codes_never_reaches_the_terminal(demo, rdi):
    odd = demo.rename("runs/a\x1b[31mred\x1b]0;x\x07")
    for command in ("evaluate", "report", "attack"):
        result = rdi(COMMANDS[command].replace("runs/demo", f'"{odd}"'))
        assert result.status == 2
        assert "\x1b" not in result.out + result.err


def test_a_formula_as_a_name_stays_text(demo, rdi):
    demo.rename("runs/=cmd")
    assert rdi("pareto 'runs=[\"runs/=cmd\"]' name=x tracking=none ratios=3").status == 0
    lines = Path("reports/x/points.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"'=cmd"}
