"""wandb offline, read back from its own file; and what happens when wandb does not work."""

import json
import shlex
import subprocess
import sys
import threading

import pytest
import wandb

from helpers.wandb_file import contents
from rdi import tracking
from rdi.confine import refuse_links
from rdi.errors import UserError
from rdi.tracking import NoTracking, Wandb, flat

GIVEN = (*tracking.VARIABLES.values(), *tracking.OURS, "WANDB_API_KEY", "WANDB_MODE")


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A home without anything in it and no wandb settings; what rdi sets is undone afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in GIVEN:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return home


@pytest.mark.parametrize("mode", ["offline", "auto"])
def test_a_run_without_key_or_network_holds_everything_and_stays_in_its_folder(mode, outside, tmp_path):
    folder = tmp_path / "runs" / "demo"
    wandb_ = Wandb(project="unit", mode=mode, group="g", tags=["a", "b"])
    rows = [["clean", 0.5, 10], ["average", 0.25, 12]]
    with wandb_.start(folder, "train", {"seed": 3, "data": {"name": "digits"}}) as log:
        log.log({"step": 1, "loss": 2.5, "clean_accuracy": [0.25, 0.5]}, 1)
        log.log({"step": 2, "loss": 1.5, "clean_accuracy": [0.5, 0.75]}, 2)
        log.table("evaluation", ["attack", "accuracy", "macs"], rows)
        log.summary({"best": 0.75, "shares": [0.1, 0.9]})
    found = contents(folder)
    steps = {line["_step"]: line for line in found["history"] if "loss" in line}
    assert {step: line["loss"] for step, line in steps.items()} == {1: 2.5, 2: 1.5}
    assert (steps[1]["clean_accuracy/exit0"], steps[1]["clean_accuracy/exit1"]) == (0.25, 0.5)
    assert (steps[2]["clean_accuracy/exit0"], steps[2]["clean_accuracy/exit1"]) == (0.5, 0.75)
    assert found["summary"]["best"] == 0.75
    assert (found["summary"]["shares/exit0"], found["summary"]["shares/exit1"]) == (0.1, 0.9)
    assert found["config"]["seed"] == 3
    run = found["run"]
    assert (run.display_name, run.job_type, run.project, run.run_group) == ("demo", "train", "unit", "g")
    assert list(run.tags) == ["a", "b"]
    assert found["exit"] == 0
    (table,) = folder.rglob("*.table.json")
    assert json.loads(table.read_text()) == {"columns": ["attack", "accuracy", "macs"], "data": rows}
    assert wandb.run is None, "closed"
    assert not (outside / "wandb").exists()
    assert not (outside / ".local" / "share" / "wandb").exists()


def test_runs_of_one_process_do_not_lead_into_each_other(outside, tmp_path):
    wandb.teardown()  # the next run begins the service, whose log lies with it
    for name in ("first", "second"):
        with Wandb(mode="offline").start(tmp_path / name, "train", {}) as log:
            log.log({"step": 1, "loss": 1.0}, 1)
        refuse_links(tmp_path / name)
        assert [path.name for path in (tmp_path / name).rglob("debug.log")]


def test_a_chart_is_a_table_and_two_of_its_columns(outside, tmp_path):
    columns, rows = ["run", "macs", "accuracy"], [["a", 5.0, 0.5], ["b", 6.0, None], ["c", 7.0, 0.75]]
    with Wandb(mode="offline").start(tmp_path / "front", "pareto", {}, "sweep") as log:
        log.scatter("accuracy against macs", columns, rows, x="macs", y="accuracy")
    found = contents(tmp_path / "front")
    assert found["run"].run_group == "sweep"
    (table,) = (tmp_path / "front").rglob("*.table.json")
    assert json.loads(table.read_text()) == {"columns": columns, "data": [rows[0], rows[2]]}
    chart = found["config"]["_wandb/visualize/accuracy against macs"]
    assert chart["panel_config"]["panelDefId"] == "wandb/scatter/v0"
    assert chart["panel_config"]["fieldSettings"] == {"x": "macs", "y": "accuracy"}


def test_the_users_group_comes_first(outside, tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(wandb, "init", lambda **how: groups.append(how.get("group")) or FakeRun())
    for chosen, given in (("mine", "sweep"), (None, "sweep"), (None, None)):
        with Wandb(mode="offline", group=chosen).start(tmp_path / "a", "pareto", {}, given):
            pass
    assert groups == ["mine", "sweep", None]


def test_a_stage_that_fails_is_marked_as_failed_and_its_error_comes_through(outside, tmp_path):
    folder = tmp_path / "failing"
    with pytest.raises(ZeroDivisionError), Wandb(mode="offline").start(folder, "train", {}):
        raise ZeroDivisionError
    assert contents(folder)["exit"] == 1
    assert wandb.run is None


def test_without_a_key_auto_means_offline_and_asks_nobody(outside, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **how: asked.append(how) or False)
    monkeypatch.setattr(
        wandb, "init", lambda **how: pytest.fail("not offline") if how["mode"] != "offline" else FakeRun()
    )
    with Wandb().start(tmp_path / "demo", "train", {}):
        pass
    assert asked == [{"prompt": False, "verify": False}]


class FakeRun:
    """Stands in for a wandb run where only the way to it is under test."""

    def __init__(self):
        self.lines, self.codes = [], []

    def log(self, line, step=None):
        self.lines.append((step, line))

    def finish(self, exit_code):
        self.codes.append(exit_code)


def test_a_server_that_does_not_answer_means_offline(outside, tmp_path, monkeypatch, said):
    modes, run = [], FakeRun()

    def init(**how):
        modes.append((how["mode"], how.get("resume")))
        if how["mode"] == "online":
            assert how["settings"].init_timeout == 2
            raise wandb.errors.CommError("no route to host")
        return run

    monkeypatch.setattr(wandb, "login", lambda **how: True)
    monkeypatch.setattr(wandb, "init", init)
    with Wandb(timeout=2).start(tmp_path / "demo", "train", {}) as log:
        log.log({"loss": 1.0, "accuracy": [0.5]}, 4)
    assert modes == [("online", "allow"), ("offline", None)]
    assert run.lines == [(4, {"loss": 1.0, "accuracy/exit0": 0.5})]
    assert run.codes == [0]
    assert said == ["wandb is not reachable (no route to host): logging offline"]


def test_a_folder_is_one_run_wherever_it_lies_and_its_steps_go_on(outside, tmp_path, monkeypatch):
    names, steps = [], []

    class Run(FakeRun):
        def log(self, line, step=None):
            steps.append(step)

    monkeypatch.setattr(wandb, "init", lambda **how: names.append(how["id"]) or Run())

    def stage(folder, last=None):
        with Wandb(mode="offline").start(tmp_path / folder, "run", {}) as log:
            if last is not None:
                log.log({"loss": 1.0}, last)
            log.table("t", ["a"], [[1]])

    stage("a", 7)
    stage("a")
    (tmp_path / "a").rename(tmp_path / "moved")
    stage("moved", 9)
    stage("b")
    assert names[:3] == [names[0]] * 3
    assert names[3] != names[0]
    assert steps == [7, 8, 8, 9, 10, 0]


def test_a_damaged_id_is_made_anew(outside, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(wandb, "init", lambda **how: names.append(how["id"]) or FakeRun())
    for text in ("", "[]", '{"id": "x"}', '{"id": "x", "step": null}'):
        (tmp_path / "a" / "wandb").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "wandb" / "rdi.json").write_text(text)
        with Wandb(mode="offline").start(tmp_path / "a", "run", {}):
            pass
    assert len(set(names)) == 4


def test_the_environment_comes_before_our_settings(outside, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **how: calls.append(how) or FakeRun())
    own = Wandb(project="p", mode="online", group="g", tags=["t"])
    for key, name in tracking.VARIABLES.items():
        monkeypatch.setenv(name, f"{key} of the user")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with own.start(tmp_path / "a", "run", {"seed": 0}):
        pass
    assert [(call["mode"], call["config"]) for call in calls] == [("offline", {"seed": 0})]
    assert not set(calls[0]) & set(tracking.VARIABLES)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with own.start(tmp_path / "b", "run", {}) as log:
        log.log({"a": 1}, 0)
    monkeypatch.setenv("WANDB_MODE", "online")
    with NoTracking().start(tmp_path / "b", "run", {}):
        pass
    assert len(calls) == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_left_alone(where, outside, tmp_path, monkeypatch, said):
    released = threading.Event()

    def hang(*arguments, **how):
        released.wait(60)
        return FakeRun()

    run = FakeRun()
    if where == "init":
        monkeypatch.setattr(wandb, "init", hang)
    else:
        monkeypatch.setattr(wandb, "init", lambda **how: run)
        monkeypatch.setattr(run, where, hang)
    monkeypatch.setattr(tracking, "PATIENCE", 0.01)
    try:
        with Wandb(mode="offline").start(tmp_path / "demo", "run", {}) as log:
            for step in range(3):
                log.log({"loss": 1.0}, step)
        assert said == ["wandb does not answer: left alone after 0 s; the run folder holds everything"]
    finally:
        released.set()


def test_a_long_table_is_cut_where_wandb_would_refuse_it(outside, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MOST_ROWS", 2)
    with Wandb(mode="offline").start(tmp_path / "demo", "run", {}) as log:
        log.table("t", ["a"], [[1], [2], [3]])
    (table,) = (tmp_path / "demo").rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[1], [2]]


def test_one_command_uploads_whatever_lies_offline(outside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "_offline", {})
    for name in ("runs/a b", "runs/c"):
        with Wandb(mode="offline").start(tmp_path / name, "run", {}):
            pass
    folders = tracking.left_offline()
    assert tracking.left_offline() == []
    assert tracking.upload_command([]) is None
    assert tracking.upload_command([tmp_path]) is None
    one, both = tracking.upload_command(folders[:1]), tracking.upload_command(folders)
    assert one == "wandb sync 'runs/a b/wandb'/offline-run-*"
    assert both == "find runs -name 'offline-run-*' -exec wandb sync {} +"
    for command, count in ((one, 1), (both, 2)):
        dry = command.replace("wandb sync", f"{shlex.quote(sys.executable)} -m wandb sync --dry-run")
        shown = subprocess.run(dry, shell=True, capture_output=True, text=True, check=True)
        assert f"Would sync {count} run(s)" in shown.stdout + shown.stderr


@pytest.mark.parametrize("error", [RuntimeError("broken\nwith details"), OSError("disk full"), ValueError()])
def test_a_wandb_that_does_not_start_does_not_stop_the_stage(error, outside, tmp_path, monkeypatch, said):
    def init(**how):
        raise error

    monkeypatch.setattr(wandb, "init", init)
    done = []
    with Wandb(mode="offline").start(tmp_path / "demo", "train", {}) as log:
        log.log({"loss": 1.0}, 1)
        log.summary({"best": 1.0})
        log.table("t", ["a"], [[1]])
        log.scatter("s", ["a", "b"], [[1, 2]], x="a", y="b")
        done.append(True)
    assert done == [True]
    (warning,) = said
    assert warning.startswith("wandb is off for this stage")
    assert "\n" not in warning


def test_errors_of_the_stage_are_not_swallowed_where_wandb_is_off(outside, tmp_path, monkeypatch):
    def init(**how):
        raise RuntimeError("broken")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ZeroDivisionError), Wandb(mode="offline").start(tmp_path / "demo", "train", {}):
        raise ZeroDivisionError


def test_no_tracking_takes_everything_and_writes_nothing(tmp_path):
    with NoTracking().start(tmp_path / "demo", "train", {"seed": 0}) as log:
        log.log({"loss": 1.0, "accuracy": [0.5]}, 1)
        log.summary({"best": 1.0})
        log.table("t", ["a"], [[1]])
        log.scatter("s", ["a", "b"], [[1, 2]], x="a", y="b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mode": "off"}, "auto, offline, online, disabled"), ({"timeout": 0}, "timeout"), ({"timeout": "1"}, "timeout")],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Wandb(**settings)


def test_lists_become_one_scalar_per_exit():
    assert flat({"loss": 1, "a": [1, 2], "b": (3,), "name": "x"}) == {
        "loss": 1,
        "a/exit0": 1,
        "a/exit1": 2,
        "b/exit0": 3,
        "name": "x",
    }
