"""What the pages tell users to write, taken from the pages and run outside the repository."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.commands import ROOT, environment

TINY = "tracking=none threads=1 optim.epochs=null optim.iterations=2 evaluations=1 calibration_samples=16"
FEW = {
    "train": TINY,
    "attack": "samples=8 threads=1 threat.test_steps=2",
    "evaluate": "tracking=none",
}


def blocks(page, language):
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def written(folder):
    """Write every block that begins with the name of its file, or has it below its package -> the names."""
    names = []
    for page in ("README.md", "src/rdi/README.md"):
        for block in [*blocks(page, "python"), *blocks(page, "yaml")]:
            if name := re.match(r"(?:# @package \w+\n)?# ([\w/]+\.(?:py|yaml))\b", block):
                path = Path(folder, name[1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)
                names.append(name[1])
    return names


def test_the_notebook_of_the_readme_runs_on_the_demo(demo, capsys):
    (script,) = [block for block in blocks("README.md", "python") if block.startswith("import rdi\n")]
    assert len(script.splitlines()) <= 14
    names = {}
    exec(compile(script, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    found, x, x_adv, y = (names[name] for name in ("found", "x", "x_adv", "y"))
    assert [row.attack for row in found.rows] == ["clean", "average", "max_average", "routed", "worst of 3"]
    assert str(found) in printed
    assert 0 < float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert len(names["out"].labels) == len(y) == 32
    assert found["clean"].mean_macs > 0
    assert (names["theirs"](x) == names["model"](x)).all()


def test_the_training_of_the_readme_makes_a_run_that_the_command_line_attacks(rdi, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = [block for block in blocks("README.md", "python") if "rdi.train(" in block]
    names = {}
    exec(compile(script.replace("epochs=3", "iterations=2"), "README.md", "exec"), names)
    assert names["network"].exits == 3
    attacked = rdi("attack run=runs/mine tracking=none threads=1 attack=average threat.test_steps=1 samples=8")
    assert attacked.status == 0, attacked.err
    judged = rdi("evaluate run=runs/mine tracking=none")
    assert judged.status == 0, judged.err
    assert "average" in judged.out


def test_five_parts_of_ones_own_work_from_outside_as_the_pages_say(tmp_path):
    files = written(tmp_path)
    kinds = {"attack", "backbone", "data", "defense", "threshold"}
    assert {name.split("/")[1] for name in files if name.endswith(".yaml")} == kinds
    assert len([name for name in files if name.endswith(".py")]) == len(kinds)
    (script,) = [block for block in blocks("src/rdi/README.md", "bash") if "runs/mine" in block and "export" in block]
    variables, *commands = script.splitlines()
    settings = dict(word.split("=", 1) for word in shlex.split(variables)[1:])
    assert settings["PYTHONPATH"] == "."
    # beside the checkout that is tested, which a user has installed
    env = environment(**{**settings, "PYTHONPATH": f".:{ROOT / 'src'}", "WANDB_MODE": "disabled"})
    words = [shlex.split(command)[1:] for command in commands]
    stages = [command for command, *_ in words]
    assert stages == ["train", "attack", "evaluate"]
    untrusted = [word for word in words[-1] if not word.startswith("trust")]
    lines = [[*line, *shlex.split(FEW[line[0]])] for line in words]
    # the refusal comes last and ends the process, which imports torch once for all four
    code = f"from rdi.cli import main\nfor words in {[*lines, untrusted]!r}: main(words); print('# done', words[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    said = done.stdout.partition("# done attack")[2]
    assert re.findall("# done (.*)", done.stdout) == stages
    assert "weakest" in said
    assert "pair on stripes" in said
    assert "add trust=[" in done.stderr.splitlines()[-1]


def test_a_network_of_timm_is_trained_attacked_and_judged_as_the_readme_says(rdi):
    (script,) = [block for block in blocks("README.md", "bash") if "backbone=timm" in block]
    lines = [line for line in script.splitlines() if line]
    assert [line.split()[1] for line in lines] == ["train", "attack", "evaluate"]
    for line in lines:
        # the smallest of timm's ResNets, whose modules have the same names
        typed = line.removeprefix("rdi ").replace("resnet18", "test_resnet").replace("samples=100", "")
        done = rdi(f"{typed} {FEW[line.split()[1]]}")
        assert done.status == 0, (line, done.err)
    assert done.out.lstrip().startswith("runs/timm: timm test_resnet on digits")
    assert re.search(r"^worst of \d", done.out, re.MULTILINE)
    assert re.search(r"^ +0/1/2 %$", done.out, re.MULTILINE), "three exits"
