"""The README's first block of daily commands works in its order, on the embedded digits."""

import re
import shlex

import yaml

from helpers.commands import ROOT

SMALL = {
    "threads": "1",
    "tracking": "none",
    "data.size": "16",
    "optim.epochs": "0.1",
    "evaluations": "1",
    "calibration_samples": "16",
    "threat.steps": "1",
    "samples": "8",
    "threat.test_steps": "1",
    "ratios": "3",
    "restarts": "2",
    "queries": "2",
    "draws": "8",
}


def commands():
    """The lines of the first block under "Daily use" without their comments, as words."""
    section = (ROOT / "README.md").read_text().partition("## Daily use")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    return [words for line in block[1].splitlines() if (words := shlex.split(line, comments=True))]


def has(config, option):
    """Whether a composed config has a dotted option."""
    for key in option.split("."):
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    return True


def test_daily_use_in_its_order(rdi):
    lines = commands()
    assert {"train", "attack", "evaluate", "pareto", "report"} <= {command for _, command, *_ in lines}
    for program, command, *typed in lines:
        assert program == "rdi"
        line = shlex.join([command, *typed])
        config = yaml.safe_load(rdi(f"{line} --cfg job").out)
        small = [f"{key}={value}" for key, value in SMALL.items() if has(config, key)]
        kept = [word for word in typed if word.partition("=")[0] not in SMALL]
        result = rdi(shlex.join([command, *kept, *small]))
        assert result.status == 0, (line, result.err)
