"""What a shell, a terminal or a scheduler may do to the program: closed pipes, no home, other locales, odd values."""

import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.commands import TINY, environment
from helpers.forked import Forked
from rdi.errors import UserError


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


NOWHERE = Path("/sys")
"""A folder in which not even root can make anything."""


@pytest.mark.skipif(not NOWHERE.is_dir(), reason="no /sys here")
def test_the_installed_script_without_a_home_where_nothing_can_be_written(finished):
    script = Path(sys.executable).with_name("rdi")
    list_all = f"env -u HOME -u XDG_CACHE_HOME '{script}' list 'runs=[{finished}]'"
    done = shell(f"cd {NOWHERE} && {list_all} | head -1")
    assert (done.stdout.startswith("1 in "), len(done.stdout.splitlines()), done.stderr) == (True, 1, "")


@pytest.mark.parametrize("line", [f"train data=digits {TINY}", f"train -m data=digits seed=1,2 {TINY}"])
@pytest.mark.parametrize("where", ["not writable", "a file at runs"])
def test_a_place_where_no_run_can_be_made_is_said_in_one_line(where, line, rdi, monkeypatch):
    if where == "not writable":
        if not NOWHERE.is_dir():
            pytest.skip("no /sys here")
        monkeypatch.chdir(NOWHERE)
    else:
        Path("runs").touch()
        assert rdi("list").errors == ["rdi list: error: runs is a file where the folder of runs belongs: move it away"]
    result = rdi(line)
    assert (result.status, len(result.errors)) == (2, 1), result.err
    assert re.search(r"cannot (make the folder|read or write) runs", result.errors[0])
    assert "Traceback" not in result.err


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
    done = Forked("evaluate run=runs/demo tracking=none", **more)
    out, err = done.communicate(timeout=300)
    assert (done.returncode, "Traceback" in err) == (0, False), err
    assert "\x1b" not in out


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
    "[[]]",
    "[null]",
    "{_target_: os.getcwd}",
    "{_target_: rdi.data.Digits}",
    "${px:8}",
    "???",
    "a b",
    "1.5",
)
# command -> what is typed with every draw, where its work would begin, and draws
COMMANDS = {
    "train": (f"run=runs/x data=digits overwrite=true {TINY}", "rdi.runs.train.fit", 8),
    "run": (f"run=runs/x data=digits overwrite=true {TINY}", "rdi.runs.train.fit", 4),
    "attack": ("run=runs/demo tracking=none threads=1 suite=quick samples=16", "rdi.runs.attack.make_bank", 6),
    "evaluate": ("run=runs/demo tracking=none threshold=entropy", "rdi.runs.verdict.evaluate_run", 6),
    "pareto": ("runs=[runs/demo] tracking=none ratios=3", "rdi.runs.front.write", 6),
    "report": ("runs=[runs/demo] ratios=3", "rdi.runs.front.write", 3),
    "health": ("run=runs/demo threads=1 quick=true", "rdi.runs.health.examine", 6),
    "table": ("name=smallcnn profile=smoke", "rdi.cli._jobs.launch", 4),
    "import": ("checkpoint=none.pt run=runs/x threads=1", "rdi.runs.beginning.begin", 4),
    "bench": ("rows=[attacks] threads=1 quick=true run=runs/demo", "rdi.runs.bench.measure", 4),
    "export": ("run=runs/demo threads=1 samples=4", "rdi.runs.export.write.export", 4),
    "list": ("runs=[runs/demo]", "rdi.listing.read_run", 4),
}


def leaves(node, at=""):
    """Dotted names of all options of a composed config."""
    for key, value in node.items():
        if not key.startswith("_"):
            yield f"{at}{key}"
            if isinstance(value, dict):
                yield from leaves(value, f"{at}{key}.")


def refused(rdi, command, word):
    """Type one odd word with an otherwise good line: one line, status 2."""
    option = word.lstrip("~").partition("=")[0]
    rest = " ".join(one for one in COMMANDS[command][0].split() if one.partition("=")[0] != option)
    result = rdi(f"{command} {rest} {shlex.quote(word)}")
    assert (result.status, len(result.errors)) == (2, 1), (command, word, result.err)
    assert "Traceback" not in result.err, (command, word, result.err)
    return result.errors[0]


@pytest.fixture
def before_work(monkeypatch):
    """before_work(command): its work ends where it begins."""

    def begun(*arguments, **options):
        raise Begun("the work begins")

    def stop(command):
        monkeypatch.setattr(COMMANDS[command][1], begun)

    return stop


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_values_are_refused_in_one_line_or_accepted_before_any_work(command, rdi, before_work, demo):
    base, _, draws = COMMANDS[command]
    options = [*leaves(yaml.safe_load(rdi(f"{command} {base} --cfg job").out)), "hydra.run.dir", "hydra.verbose"]
    words = [*(f"{option}={value}" for option in options for value in ODD), *(f"~{option}" for option in options)]
    before_work(command)
    assert "the work begins" in refused(rdi, command, "trust=[]") or command == "import"
    for word in random.Random(10).sample(words, draws):
        refused(rdi, command, word)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate ~split", "split cannot be deleted"),
        ("evaluate ~trust", "trust cannot be deleted"),
        ("bench ~shape", "shape cannot be deleted"),
        ("evaluate trust=${px:8}", "trust must be a list, each item a text"),
        ("pareto runs={}", "runs must be a list, each item a text"),
        ("table seeds=${px:8}", "seeds must be a list, each item a whole number"),
        ("evaluate threshold.score={_target_:os.getcwd}", "threshold.score cannot be what os.getcwd makes"),
        ("train threshold={_target_:rdi.data.Digits}", "and rdi.data.Digits is of the kind data"),
        ("train ++defense.attack={_target_:os.getcwd}", "defense.attack cannot be what os.getcwd makes"),
        ("train optim.optimizer._partial_=false", "torch.optim.SGD needs _partial_: true"),
        ("train ++threshold.score={_target_:rdi.thresholds.Margin,_partial_:true}", "leave out _partial_"),
        ("train threshold.score={_target_:rdi.thresholds.Margin,_partial_:true}", "write ++threshold.score=..."),
        ("train optim=1e308", "optim=1e308 names none of its choices"),
        ("train sweep=0", "sweep=0 names none of its choices"),
        ("train hydra.verbose=null", "hydra.verbose=null"),
        ("train threads=~", "threads=~ cannot be read"),
    ],
)
def test_what_is_odd_is_named(line, said, rdi, before_work, demo):
    command, _, word = line.partition(" ")
    before_work(command)
    assert said in refused(rdi, command, word)


def test_what_was_typed_wins_over_a_recipe_in_iterations(rdi):
    shown = rdi("train optim.epochs=1 optim=smallcnn --cfg job").out
    assert "epochs: 1" in shown
    assert "iterations: null" in shown
