"""`rdi list`, and runs by name: what is said of any folder, whole or hostile."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.examples import EXAMPLES
from helpers.listed import copy, listed
from rdi import listing
from rdi.cli import _edge, main
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import CertificateRecord, to_dict, write
from rdi.report import listed as tables
from rdi.runs import names
from rdi.runs.pipeline import announced


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with runs/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_judged_run_shows_its_headline_figures(home, capsys):
    copy("smallcnn-standard-seed0", home / "plain")
    copy("smallcnn-average-seed0", home / "robust")
    runs = {run.path.name: run for run in map(listing.read_run, home.iterdir())}
    worst = json.loads((home / "robust" / "evals" / "paper_smallcnn__test-worst.json").read_text())
    assert runs["robust"].worst == worst["accuracy"]
    assert {run.state for run in runs.values()} == {listing.JUDGED}
    out = listed(capsys, "sort=worst")
    rows = [line.split() for line in out.splitlines()]
    names = [row[0] for row in rows if row and row[0] in runs]
    assert names == ["robust", "plain"]
    assert "defense=standard" in out
    assert "attack.eps" not in out  # threat.eps, and equal


def test_a_certificate_stands_beside_the_worst_case(home, capsys):
    copy("smallcnn-standard-seed0", home / "plain")
    path = RunFolder(copy("smallcnn-average-seed0", home / "robust")).certificate("paper_smallcnn", "test")
    assert "certified" not in listed(capsys)
    record = next(one for one in EXAMPLES if isinstance(one, CertificateRecord))
    path.parent.mkdir()
    write(path, replace(record, accuracy=0.125))
    assert listing.read_run(home / "robust").certified == 0.125
    table = listed(capsys, "sort=certified").splitlines()
    header, robust, plain = (
        next(line for line in table if line.startswith(word)) for word in ("run ", "robust", "plain")
    )
    assert "certified %" in header
    assert "12.5" in robust.split()
    assert plain.split()[4] == "-"
    assert table.index(robust) < table.index(plain)
    write(path, {**to_dict(record), "accuracy": 1.5})
    assert "accuracy: must be in [0, 1], got 1.5" in listing.read_run(home / "robust").why


def test_what_differs_has_a_line_of_its_own_where_there_is_no_room_beside_the_figures(home, capsys):
    committed = ("smallcnn-standard-seed0", "smallcnn-average-seed0", "smallcnn-atmc8-10-seed0")
    for number, network in enumerate(committed):
        copy(network, home / f"a-run-with-a-name-{number}")
    table = listed(capsys).splitlines()
    assert max(map(len, table)) <= 80
    assert table[1] == "below each run: what differs"
    first, last = (next(k for k, line in enumerate(table) if line.startswith(f"a-run-with-a-name-{n}")) for n in (0, 2))
    assert table[first + 1].startswith("    ")
    # no option is broken in two
    assert "defense=standard" in " ".join(table[first + 1 :]).split()
    assert "compression=atmc" in " ".join(table[last + 1 :]).split()


def test_states(home):
    assert listing.read_run(copy("smallcnn-average-seed0", home / "begun", done=False)).state == listing.BEGUN
    attacked = copy("smallcnn-average-seed0", home / "attacked")
    shutil.rmtree(attacked / "evals")
    assert listing.read_run(attacked).state == listing.ATTACKED
    shutil.rmtree(attacked / "banks")
    assert listing.read_run(attacked).state == listing.TRAINED
    (home / "other").mkdir()
    assert listing.read_run(home / "other").state == listing.NO_RUN
    assert listing.read_run(home / "absent").state == listing.NO_RUN


def test_a_run_at_work_is_told_from_one_that_was_stopped(home):
    folder = copy("smallcnn-average-seed0", home / "busy", done=False)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listing.read_run(folder).state == listing.RUNNING
    assert listing.read_run(folder).state == listing.BEGUN


def test_figures_of_a_bank_that_was_made_anew_are_not_shown(home, capsys):
    folder = copy("smallcnn-average-seed0", home / "remade")
    bank = folder / "banks" / "test-average" / "manifest.json"
    bank.write_text(json.dumps({**json.loads(bank.read_text()), "sha256": "0" * 64}))
    found = listing.read_run(folder)
    assert (found.state, found.clean, found.worst) == (listing.ATTACKED, None, None)
    assert "average was made anew, and not judged since" in " ".join(listed(capsys).split())


def manifest(content):
    return lambda folder: (folder / "manifest.json").write_bytes(content)


def without(name):
    return lambda folder: (folder / name).unlink()


def pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


HARM = {
    "no JSON": manifest(b"{"),
    "bytes": manifest(b"\xff\x00\x1b[2J"),
    "a list": manifest(b"[]"),
    "too deep": manifest(b"[" * 100_000),
    "other keys": manifest(b'{"command": "train"}'),
    "null": manifest(b"null"),
    "no manifest": without("manifest.json"),
    "no weights": without("checkpoint.safetensors"),
    "a pipe": pipe("manifest.json"),
    "no arrays": without("banks/test-average/bank.npz"),
    "half a bank": without("banks/test-clean/manifest.json"),
    "arrays changed since": lambda folder: (folder / "banks" / "test-average" / "bank.npz").write_bytes(b"x"),
    "an evaluation of garbage": lambda folder: (folder / "evals" / "paper_smallcnn__test-clean.json").write_text("x"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_run_is_one_marked_line_beside_the_others(harm, home, capsys):
    copy("smallcnn-standard-seed0", home / "whole")
    HARM[harm](copy("smallcnn-average-seed0", home / "bad"))
    assert listing.read_run(home / "bad").state == listing.DAMAGED
    assert listing.read_run(home / "bad").why
    out = listed(capsys)
    assert "1 judged, 1 damaged" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", os.fsdecode(b"\xff\xfe"), "x" * 200, "=cmd|'calc'!A0"])
def test_no_name_reaches_the_terminal_raw(name, home, capsys):
    (home / name).mkdir()
    copy("smallcnn-standard-seed0", home / "whole")
    out = listed(capsys)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert "1 judged, 1 no run" in out or "1 judged, 1 damaged" in out


def test_files_loops_and_dangling_links_are_no_obstacle(home, capsys):
    copy("smallcnn-standard-seed0", home / "whole")
    (home / "file").touch()
    (home / "loop").symlink_to("loop")
    (home / "gone").symlink_to("nowhere")
    assert "1 in runs: 1 judged" in listed(capsys)


def test_csv_has_a_row_per_run_and_a_column_per_difference(home, capsys):
    copy("smallcnn-standard-seed0", home / "plain")
    copy("smallcnn-average-seed0", home / "robust")
    header, *rows = listed(capsys, "csv=true").splitlines()
    assert header.startswith("run,state,clean_accuracy,worst_accuracy,certified_accuracy,corrupted_accuracy,saved,")
    assert "defense" in header.split(",")
    assert len(rows) == 2


def test_no_runs_is_one_line(home, capsys):
    with pytest.raises(SystemExit) as end:
        main(["list"])
    assert end.value.code == 2
    assert "no runs in runs/*" in capsys.readouterr().err


def test_seed2_stands_before_seed10():
    runs = [listing.Listed(Path(f"runs/seed{n}"), listing.NO_RUN) for n in (10, 2, 1)]
    assert [run.path.name for run in tables.ordered(runs, "name")] == ["seed1", "seed2", "seed10"]


def run(name, groups=("attack", "optim"), **settings):
    options = {key.replace("__", "."): value for key, value in settings.items()}
    return listing.Listed(Path(name), listing.JUDGED, settings=options, groups=groups)


def test_what_follows_from_a_choice_or_repeats_another_option_is_no_difference():
    one = run("a", attack="main", attack__steps="5", defense__attack__steps="5", optim="o", optim__lr="1", seed="0")
    two = run("b", attack="max", attack__steps="9", defense__attack__steps="9", optim="o", optim__lr="2", seed="0")
    assert listing.differing([one, two]) == [
        {"attack": "main", "optim.lr": "1"},
        {"attack": "max", "optim.lr": "2"},
    ]
    three = run("c", attack="max", attack__steps="7", defense__attack__steps="7", optim="o", optim__lr="2", seed="0")
    assert listing.differing([two, three]) == [{"attack.steps": "9"}, {"attack.steps": "7"}]


def test_list_imports_no_torch(home):
    code = "import sys; from rdi.cli import main; main(['list']); print('torch' in sys.modules)"
    copy("smallcnn-standard-seed0", home / "whole")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def begun(path):
    path.mkdir(parents=True)
    (path / "manifest.json").touch()
    return path


def test_a_name_means_the_run_below_runs(home):
    begun(home / "demo")
    assert names.path("demo") == Path("runs/demo")
    assert names.path("runs/demo") == Path("runs/demo")
    assert names.path("./demo", needed=False) == Path("demo")
    assert names.path("new", needed=False) == Path("new")
    assert names.path("demo*") == Path("runs/demo*")


def test_a_name_that_fits_two_runs_is_refused(home):
    begun(home / "demo")
    begun(Path("demo"))
    with pytest.raises(UserError, match=r"run=demo may be \./demo or runs/demo"):
        names.path("demo")
    shutil.rmtree("demo")
    Path("demo").mkdir()  # a folder that is no run
    assert names.path("demo") == Path("runs/demo")


def test_a_new_run_is_announced_with_what_it_is_and_with_what_may_have_been_meant(home):
    chosen = {"data": "digits", "backbone": "smallcnn", "defense": "adversarial", "attack": "main"}
    what = (
        "runs/dmeo is a new run: training begins with data=digits, backbone=smallcnn, defense=adversarial, attack=main"
    )
    assert announced(RunFolder("runs/dmeo"), chosen, typed=True) == what
    said = f"{what}, as in the demo, since nothing else was named"
    assert announced(RunFolder("runs/dmeo"), chosen, typed=False) == said
    begun(home / "demo")
    assert announced(RunFolder("runs/dmeo"), chosen, typed=False) == f"{said}; if you meant runs/demo, stop with Ctrl-C"


def test_a_name_that_is_missing_brings_the_near_ones(home):
    with pytest.raises(UserError, match="makes the demo's"):
        names.path("demo")
    begun(home / "demo")
    with pytest.raises(UserError, match=r"no run dmeo here or in runs/: did you mean runs/demo\?"):
        names.path("dmeo")
    with pytest.raises(UserError, match=r"no run runs/dem: did you mean runs/demo\?"):
        names.path("runs/dem")
    with pytest.raises(UserError, match="rdi list"):
        names.path("something")


def test_every_option_that_names_a_run_takes_a_name(home):
    begun(home / "demo")
    begun(home / "other")
    config = {"run": "demo", "attack": {"surrogate": "other"}, "compression": {"start": "demo"}}
    settled = _edge.named("attack", OmegaConf.create(config))
    assert settled == {
        "run": "runs/demo",
        "attack": {"surrogate": "runs/other"},
        "compression": {"start": "runs/demo"},
    }
    fronts = _edge.named("pareto", OmegaConf.create({"runs": ["demo", "runs/other", 3]}))
    assert fronts.runs == ["runs/demo", "runs/other", 3]
    assert _edge.named("train", OmegaConf.create({"run": None})) == {"run": None}
    assert _edge.named("train", OmegaConf.create({"run": "fresh"})) == {"run": "fresh"}
    assert _edge.named("table", OmegaConf.create({"runs": "runs/tables"})) == {"runs": "runs/tables"}
