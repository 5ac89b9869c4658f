"""Help, completion, the user's own config folders, several jobs at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from helpers.commands import TINY, environment
from helpers.wandb_file import parsed


def test_help_does_not_import_what_is_heavy():
    code = (
        "import sys; from rdi.cli import main; main(['--help']); "
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'wandb', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage: rdi COMMAND" in done.stdout


def test_completion_and_the_composed_config_do_not_import_torch():
    code = (
        "import sys; from rdi.cli import main; main(['train', '--cfg', 'job']); "
        "print([name for name in ('torch', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["run", "train", "attack", "evaluate", "pareto", "table", "report", "import"])
def test_every_command_has_help_and_a_composed_config(command, rdi, tmp_path):
    result = rdi(f"{command} --help")
    assert result.status == 0
    assert f"usage: rdi {command} [OPTION=VALUE ...]" in result.out
    assert "'${px:8}'" in result.out
    assert "hydra:" not in result.out
    shown = rdi(f"{command} --cfg job")
    assert shown.status == 0
    assert "_target_" in shown.out or command in ("attack", "table", "report")
    assert shown.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("train run=1e5", "run", "1e5"),
        ("train run=1_000", "run", "1_000"),
        ("train run=3", "run", "3"),
        ("train start=.5", "start", ".5"),
        ("train run=null", "run", None),
        ("attack run=x label=true", "label", "true"),
        ("pareto runs=[1e5,b] name=1.", "runs", ["1e5", "b"]),
        ("pareto runs=1e5,b name=1.", "runs", ["1e5", "b"]),
        ("pareto runs=[a] name=1.", "name", "1."),
        ("train run='1e5'", "run", "1e5"),
    ],
)
def test_texts_stay_as_they_were_typed(line, option, value, rdi):
    assert yaml.safe_load(rdi(f"{line} --cfg job").out)[option] == value


def test_texts_of_a_sweep_stay_as_they_were_typed(rdi, tmp_path):
    assert rdi(f"train -m run=1e1,b {TINY}").status == 0
    assert (tmp_path / "1e1" / "manifest.json").is_file()


def test_part_of_the_composed_config(rdi):
    shown = rdi("train attack=average --cfg job -p attack --resolve")
    assert shown.status == 0
    assert "rdi.attacks.Average" in shown.out
    assert "eps: 0.1" in shown.out


def test_version_and_no_command(rdi):
    assert rdi("--version").out.startswith("rdi ")
    assert "usage: rdi COMMAND" in rdi("").out


COMPLETIONS = {
    "rdi tr": ["train"],
    "rdi ": [
        "run",
        "train",
        "attack",
        "evaluate",
        "certify",
        "pareto",
        "table",
        "report",
        "list",
        "health",
        "bench",
        "import",
        "export",
    ],
    "rdi train backbone=r": [f"backbone=resnet{depth}" for depth in (110, 152, 16, 38, "38_w15", "38_w20", 74)],
    "rdi train attack.st": ["attack.step_size=", "attack.steps="],
    "rdi train seed=1 threshold=c": ["threshold=confidence"],
    "rdi evaluate ru": ["run="],
    "rdi nonsense a": [],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_tab_completion(line, rdi, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    result = rdi("-sc query=bash")
    assert result.status == 0
    assert result.out.split() == COMPLETIONS[line]
    assert result.err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell, rdi, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rdi"])
    result = rdi(f"-sc install={shell}")
    assert result.status == 0
    assert f"-sc query={'fish' if shell == 'fish' else 'bash'}" in result.out
    assert "rdi" in result.out


@pytest.fixture
def mine(tmp_path):
    """A folder with attack/mine.yaml."""
    (tmp_path / "mine" / "attack").mkdir(parents=True)
    (tmp_path / "mine" / "attack" / "mine.yaml").write_text("defaults: [average, _self_]\n\nsteps: 17\n")
    return tmp_path / "mine"


def test_a_config_folder_on_the_command_line(rdi, mine):
    assert "steps: 17" in rdi("train --config-dir mine attack=mine --cfg job -p attack").out
    assert "not found" in rdi("train --config-dir nowhere").errors[0]


def test_a_config_folder_for_good(rdi, mine, monkeypatch):
    assert rdi("train attack=mine --cfg job").status == 2
    monkeypatch.setenv("RDI_CONF_DIR", str(mine))
    assert "steps: 17" in rdi("train attack=mine --cfg job -p attack").out
    monkeypatch.setenv("COMP_LINE", "rdi train attack=mine")
    assert rdi("-sc query=bash").out.split() == ["attack=mine"]
    monkeypatch.setenv("RDI_CONF_DIR", "nowhere")
    assert "RDI_CONF_DIR=nowhere is not a folder" in rdi("train --cfg job").errors[0]


def test_several_jobs(rdi, tmp_path):
    """One job fails, the others finish; a second call skips those and fails again."""
    line = f"train -m seed=1,2 attack.eps=0.1,7 {TINY}"
    for again in (False, True):
        result = rdi(line)
        assert result.status == 2
        assert len(result.errors) == 1
        assert "2 of 4 jobs failed, the first: attack.eps must be in [0, 1], got 7" in result.errors[0]
        assert "job 1 failed: attack.eps must be in [0, 1], got 7" in result.err
        assert ("2 of 4 were finished before: skipped" in result.err) == again
        assert "Traceback" not in result.err
        runs = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
        assert sorted(json.loads((run / "manifest.json").read_text())["seed"] for run in runs) == [1, 2]
        assert all((run / "done").is_file() for run in runs)


def test_the_same_folder_for_different_jobs_is_a_mistake(rdi):
    result = rdi(f"train seed=1,2 -m run=runs/one {TINY}")
    assert result.status == 2
    assert "2 trainings cannot share the folder run=runs/one" in result.errors[0]
    assert not Path("runs/one").exists()  # nothing was trained that would be lost


def test_a_signal_ends_all_jobs(rdi, monkeypatch, tmp_path):
    from rdi import signals

    class Stopped(signals.StopFlag):
        def __call__(self):
            return True

    monkeypatch.setattr(signals, "StopFlag", Stopped)
    result = rdi(f"train -m seed=1,2 {TINY}")
    assert result.status == 130
    assert "go on with `rdi train run=runs/" in result.errors[0]
    assert len([path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]) == 1


def test_a_run_folder_is_one_wandb_run_and_its_numbers_are_numbers(rdi, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    line = f"{TINY.replace('tracking=none', 'tracking.group=g')} suite=quick samples=4 threat.test_steps=1"
    result = rdi(f"run -m seed=1,2 {line} stages=[train,attack,evaluate]")
    assert result.status == 0, result.err
    assert wandb.run is None
    assert "find runs -name 'offline-run-*' -exec wandb sync {} +" in result.err
    folders = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    runs = {}
    for folder in folders:
        stages = [parsed(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
        assert [stage["exit"] for stage in stages] == [0, 0, 0], "train, attack, evaluate"
        (runs[folder],) = {(one["run"].run_id, one["run"].project, one["run"].run_group) for one in map(dict, stages)}
        assert stages[1]["summary"]["attack/test/average/samples"] == 4
        steps = [line["_step"] for stage in stages for line in stage["history"]]
        assert steps == sorted(set(steps)), "a later stage goes on where the one before ended"
        (table,) = [json.loads(path.read_text()) for path in folder.rglob("*.table.json")]
        assert table["columns"][:3] == ["attack", "samples", "accuracy"]
        assert all(type(value) in (int, float, type(None)) for row in table["data"] for value in row[1:])
        accuracy = {row[0]: row[2] for row in table["data"]}
        assert accuracy["clean"] == stages[2]["summary"]["clean/accuracy"]
    assert len({identifier for identifier, _, _ in runs.values()}) == 2
    assert {place[1:] for place in runs.values()} == {("mine", "g")}
    last = rdi(f"evaluate run={folders[0].relative_to(tmp_path)}")
    assert f"to upload: wandb sync runs/{folders[0].name}/wandb/offline-run-*" in last.err


def test_wandb_mode_disabled_is_obeyed(rdi, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert rdi(f"train run=runs/x {TINY.replace('tracking=none', 'tracking.mode=offline')}").status == 0
    assert not (tmp_path / "runs" / "x" / "wandb").exists()


def test_a_failure_of_wandb_does_not_stop_a_training(rdi, tmp_path, monkeypatch):
    import wandb

    def broken(*arguments, **settings):
        raise RuntimeError("the service is gone")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb.Run, "log", broken)
    result = rdi(f"train run=runs/x {TINY.replace('tracking=none', '')}")
    assert result.status == 0
    assert "wandb missed a line: the service is gone" in result.err
    monkeypatch.setattr(wandb, "init", broken)
    result = rdi(f"train run=runs/y {TINY.replace('tracking=none', '')}")
    assert result.status == 0
    assert "wandb is off for this stage: the service is gone" in result.err


def test_a_mistake_in_one_command_leaves_no_trace_in_the_next(rdi):
    """The same process runs many commands in the tests, and in a user's notebook."""
    before = dict(os.environ), list(sys.argv)
    assert rdi("train attack.eps=7").status == 2
    assert rdi("train --foo").status == 2
    assert (dict(os.environ), sys.argv) == before
    assert torch.is_grad_enabled()
