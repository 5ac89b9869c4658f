"""What a shell, a terminal or a scheduler may do to the program: closed pipes, no home, other locales, odd values."""

import random
import shlex
import subprocess
import sys

import pytest

from conftest import TINY, environment
from rdi.errors import UserError

pytestmark = pytest.mark.e2e


def shell(line, **more):
    """A line of bash in which `rdi` is this checkout's."""
    return subprocess.run(
        ["bash", "-c", line.replace("rdi ", f"{shlex.quote(sys.executable)} -m rdi ")],
        env=environment(**more),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("line", ["rdi train --cfg job | head -1", "rdi list 'runs=[demo]' | head -1"])
def test_a_reader_that_goes_away(line, finished):
    done = shell(f"cd {finished.parent} && {line}")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    "more",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "nonsense"},
        {"TERM": "dumb", "NO_COLOR": "1"},
        {"HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere/cache"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_pictures_and_tables_are_made_all_the_same(more, demo):
    done = shell("rdi evaluate run=runs/demo tracking=none", **more)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "\x1b" not in done.stdout


def test_names_beyond_ascii_in_an_ascii_locale(demo):
    demo.rename("runs/démo")
    done = shell("rdi evaluate run=runs/démo tracking=none", LC_ALL="C", LANG="C")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


class Begun(UserError):
    """The work would have begun."""


ODD = (
    "null",
    "[]",
    "{}",
    "[nan]",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e308",
    str(2**70),
    "''",
    "x",
    "true",
    "n" * 300,
    "../x",
)
OPTIONS = (
    *("seed", "threads", "precision", "channels_last", "evaluations", "calibration_samples", "keep", "overwrite"),
    *("normalise", "device", "trust", "backbone", "exits", "attack", "defense", "compression", "threshold", "data"),
    *("optim", "tracking", "threat", "attack.eps", "attack.steps", "attack.step_size", "attack.restarts"),
    *("defense.exit_weights", "defense.engine", "threshold.score", "threshold.shares", "threshold.offsets"),
    *("data.size", "data.name", "data.calibration", "data.split_seed", "optim.lr", "optim.batch_size"),
    *("optim.epochs", "optim.iterations", "optim.milestones", "optim.optimizer", "optim.optimizer.momentum"),
    *("threat.eps", "threat.steps"),
)


def test_odd_values_are_refused_in_one_line_or_accepted_before_any_work(rdi, monkeypatch):
    from rdi.runs import train

    def begun(*arguments, **options):
        raise Begun("the work begins")

    monkeypatch.setattr(train, "fit", begun)
    cases = [(option, value) for option in OPTIONS for value in ODD]
    for option, value in random.Random(10).sample(cases, 30):
        rest = " ".join(word for word in TINY.split() if word.partition("=")[0] != option.partition("=")[0])
        result = rdi(f"train run=runs/x data=digits overwrite=true {rest} {shlex.quote(f'{option}={value}')}")
        assert result.status == 2, (option, value, result.err)
        assert len(result.errors) == 1, (option, value, result.err)
        assert "Traceback" not in result.err, (option, value, result.err)


def test_what_was_typed_wins_over_a_recipe_in_iterations(rdi):
    shown = rdi("train optim.epochs=1 optim=smallcnn --cfg job").out
    assert "epochs: 1" in shown
    assert "iterations: null" in shown
