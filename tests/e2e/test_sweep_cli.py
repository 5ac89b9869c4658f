"""Sweeps and searches as a user runs them."""

import csv
import hashlib
import html
import json
import re
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest

from helpers.commands import TINY
from helpers.forked import Forked
from helpers.wandb_file import contents
from rdi.cli import _edge, train

SMALL = (
    f"{TINY} data.size=16 data.test=40 data.calibration=40 suite=quick samples=8 threat.test_steps=1 attack=average "
    "stages=[train,attack,evaluate]"
)


def folders():
    """The run folders that there are."""
    return sorted(path for path in Path("runs").iterdir() if not path.name.startswith("."))


def test_a_named_sweep_skips_what_is_finished(rdi):
    line = f"run sweep=seeds seed=1,2 {SMALL}"
    first = rdi(line)
    assert first.status == 0, first.err
    assert "seeds: 2 of 2 jobs are finished\n" in first.err
    runs = folders()
    assert f"rdi pareto 'runs=[{','.join(map(str, sorted(runs)))}]' name=seeds" in first.out.replace(
        f"[{runs[1]},{runs[0]}]", f"[{runs[0]},{runs[1]}]"
    )
    assert {json.loads((run / "manifest.json").read_text())["config"]["sweep"] for run in runs} == {"seeds"}
    made = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("bank.npz")}
    again = rdi(line.replace("seed=1,2", "seed=1,2,3"))
    assert again.status == 0, again.err
    assert "seeds: 3 of 3 jobs are finished, 2 of 3 were finished before: skipped" in again.err
    assert again.err.count("is trained already") == 0, "they are not even composed"
    assert made.items() <= {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("bank.npz")}.items()
    # the same run without the sweep is the same run
    assert "is trained already" in rdi(f"run seed=2 {SMALL}").err
    assert len(folders()) == 3


@pytest.mark.parametrize("launcher", ["", "hydra/launcher=gpu_pool hydra.launcher.devices=[cpu]"])
def test_finished_jobs_are_not_composed_again(rdi, monkeypatch, launcher):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    composed = []
    real = ConfigLoaderImpl.load_sweep_config

    def counted(self, master_config, sweep_overrides):
        composed.append(tuple(sweep_overrides))
        return real(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    Path("own").mkdir()
    trained = SMALL.replace("train,attack,evaluate", "train")
    line = f"run -m {launcher} --config-dir own seed=1,2 {trained if launcher else SMALL}"

    def again(line):
        """The seeds that are composed by another call, which finishes all."""
        composed.clear()
        result = rdi(line)
        assert result.status == 0, result.err
        return {word for job in composed for word in job if word.startswith("seed=")}

    assert again(line) == {"seed=1", "seed=2"}
    assert again(line) == set()
    if launcher:
        return  # what is noted and compared is the same; only who notes it differs
    assert again(line.replace("seed=1,2", "seed=1,2,3")) == {"seed=3"}
    first = next(path for path in folders() if json.loads((path / "manifest.json").read_text())["seed"] == 1)
    (bank,) = first.glob("banks/test-average/bank.npz")
    bank.touch()
    assert again(line) == {"seed=1"}
    (first / "done").unlink()
    assert again(line) == {"seed=1"}
    assert (first / "done").is_file()
    Path("own/mine.yaml").write_text("x: 1\n")
    assert again(line) == {"seed=1", "seed=2"}, "a config file has changed"
    numbered = line.replace(SMALL, trained) + " 'run=runs/x-${hydra:job.num}'"
    assert again(numbered) == {"seed=1", "seed=2"}
    assert again(numbered) == {"seed=1", "seed=2"}, "its config hangs on its number"


def test_rdi_run_draws_again_only_what_has_changed(rdi):
    line = f"run run=runs/x {SMALL.replace(',evaluate]', ',evaluate,pareto]')} ratios=3"
    assert "picture:" in rdi(line).out
    again = rdi(line)
    assert "reports/x is drawn already" in again.err
    assert "picture:" not in again.out
    assert "picture:" in rdi(line.replace("ratios=3", "ratios=4")).out


def test_a_bug_in_one_job_ends_with_its_traceback_and_status_1(rdi, monkeypatch):
    from rdi.cli import train

    real = train.train

    def broken(folder, config, *rest, **options):
        if config["seed"] == 1:
            raise ZeroDivisionError("a bug")
        return real(folder, config, *rest, **options)

    monkeypatch.setattr(train, "train", broken)
    result = rdi(f"train -m seed=1,2 data.size=16 {TINY}")
    assert result.status == 1
    assert "Traceback" in result.err
    assert "1 of 2 jobs failed, the first: ZeroDivisionError: a bug" in result.errors[0]
    assert [(run / "done").is_file() for run in folders()] == [True]


def test_the_sweep_of_exit_rules_needs_no_training(rdi, demo):
    result = rdi("evaluate sweep=thresholds run=runs/demo tracking=none")
    assert result.status == 0, result.err
    assert "thresholds: 8 of 8 jobs are finished" in result.err
    assert "exit policy confidence" in result.out
    assert len(list((demo / "thresholds").glob("budget-*.json"))) == 3


MISTAKES = {
    "run sweep=sedes": "choose one of alpha, defenses",
    "run -m sweep=seeds,eps": "one sweep at a time",
    "run -m seed=interval(0,1)": "search with hydra/sweeper=tune",
    "run -m hydra/sweeper=tune": "a search needs a name",
    "run sweep=search tracking=none hydra.sweeper.n_trials=0": "error: hydra.sweeper.n_trials must be at least 1",
    "run sweep=search tracking=none hydra.sweeper.sampler=best": "sampler must be one of tpe, nsga2, random",
    "run sweep=search tracking=none optim.lr=interval(0.1,0.01)": "optim.lr: ",
    "run sweep=search tracking=none optim.lrr=interval(0,1)": "did you mean optim.lr?",
    "run sweep=search hydra.sweeper.objectives.speed=maximize": "did you mean hydra.sweeper.objectives.mean_macs?",
    "train -m seed=1,2 run=runs/q": "2 trainings cannot share the folder run=runs/q",
    "run -m seed=1,2 run=runs/q": "2 trainings cannot share the folder run=runs/q",
    "train -m hydra/launcher=joblip": "choose one of basic, gpu_pool",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line, rdi, tmp_path):
    if "sampler" in line or "interval(0.1" in line:
        pytest.importorskip("optuna")
    result = rdi(line)
    assert result.status == 2, result.err
    assert MISTAKES[line] in result.errors[-1]
    assert "Traceback" not in result.err
    assert not list(tmp_path.glob("reports/*/trials.csv"))


SEARCH = (
    f"run sweep=search hydra.sweeper.n_trials=4 'attack=average,main' {SMALL.replace(' attack=average', '')} "
    "'optim.lr=interval(0.01,0.1)' 'defense.adversarial_weight=0.5' 'threshold.scales=0.5,1,2'"
)


def assert_measured(row, split, prefix):
    """A line of trials.csv holds what the records of its run on a split say."""
    (clean,) = Path(row["run"], "evals").glob(f"*__{split}-clean.json")
    (worst,) = Path(row["run"], "evals").glob(f"*__{split}-worst.json")
    clean, worst = json.loads(clean.read_text()), json.loads(worst.read_text())
    assert {clean["split"], worst["split"]} == {split}
    measured = (clean["accuracy"], worst["accuracy"], clean["mean_macs"])
    found = tuple(float(row[f"{prefix}{key}"]) for key in ("clean_accuracy", "worst_accuracy", "mean_macs"))
    assert found == measured


def test_a_search_that_was_killed_goes_on(rdi):
    pytest.importorskip("optuna")
    line = SEARCH.replace("n_trials=4", "n_trials=3")
    process = Forked(line)
    begun = False
    for said in process.stderr:
        begun = begun or said.startswith("trial 1: attack=")
        if begun and "3 exits" in said:
            break  # in the middle of the second trial's training
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = rdi(line)
    assert result.status == 0, result.err
    assert "search search goes on: 1 of 3 trials are done, 1 that a killed process left are run again" in result.err
    rows = list(csv.DictReader(Path("reports/search/trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete", "killed", "complete", "complete"]
    options = ("attack", "optim.lr", "threshold.scales")
    assert [rows[1][key] for key in options] == [rows[2][key] for key in options]
    assert len({row["optim.lr"] for row in rows}) == 3
    for row in rows:
        if row["state"] == "complete":
            assert_measured(row, "validation", "")
            if row["on_front"] == "True":
                assert_measured(row, "test", "test_")
            else:
                assert row["test_clean_accuracy"] == ""
                assert not list(Path(row["run"]).glob("*/*test-*")), "the test images chose nothing"
    assert "3 complete, 1 killed" in result.out
    assert "hypervolume" in result.out
    # nothing is left to do; then one more trial, and other options are refused
    assert "3 of 3 trials are done" in rdi(line).err
    assert "4 complete" in rdi(line.replace("n_trials=3", "n_trials=4")).out
    # a search killed before its front was judged: the same command judges it
    rows = list(csv.DictReader(Path("reports/search/front.csv").read_text().splitlines()))
    with closing(sqlite3.connect("reports/search/study.db")) as study, study:
        study.execute("DELETE FROM study_user_attributes WHERE key = 'test'")
    again = rdi(line.replace("n_trials=3", "n_trials=4"))
    assert f"the front is judged on the test images now: {len(rows)} to do" in again.err
    assert list(csv.DictReader(Path("reports/search/front.csv").read_text().splitlines())) == rows
    assert "judged on the test images now" not in rdi(line.replace("n_trials=3", "n_trials=4")).err
    refused = rdi(f"{line} seed=7")
    assert refused.status == 2
    assert "was begun with other settings (options" in refused.errors[0]


def test_a_search_with_trials_that_fail_goes_on_and_is_sent_to_wandb(rdi, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("WANDB_MODE", "offline")
    line = SEARCH.replace("interval(0.01,0.1)", "choice(0.1,-1)").replace(
        "tracking=none", "tracking=wandb tracking.mode=offline hydra.sweeper.sampler=random hydra.sweeper.study=mine"
    )
    result = rdi(f"{line} split=test data.validation=0")
    assert result.status == 0, result.err
    assert "the front was chosen by them: it is optimistic" in result.out.replace("\n", " ")
    rows = list(csv.DictReader(Path("reports/mine/trials.csv").read_text().splitlines()))
    assert {(row["state"], row["optim.lr"]) for row in rows} == {("complete", "0.1"), ("failed", "-1")}
    assert len(list(Path("reports/mine/wandb").glob("offline-run-*/run-*.wandb"))) == 1
    assert "optim.lr" in result.err
    assert "a chart" not in result.err, "wandb took the chart"
    # the front, read back out of wandb's own file and its tables
    front = list(csv.DictReader(Path("reports/mine/front.csv").read_text().splitlines()))
    found = contents(Path("reports/mine"))
    complete = sum(row["state"] == "complete" for row in rows)
    expected = {"trials": 4, "complete": complete, "failed": 4 - complete, "trials_on_front": len(front)}
    assert {key: found["summary"][key] for key in expected} == expected
    assert f"hypervolume {found['summary']['hypervolume']:.4f}" in result.out
    logged = [json.loads(path.read_text()) for path in Path("reports/mine/wandb").rglob("*front*.table.json")]
    columns = logged[0]["columns"]
    assert [[str(value) for value in line] for line in logged[0]["data"]] == [
        [row[name].replace("true", "True") for name in columns] for row in front
    ]


def cells(page, title):
    """The rows of the table of this title on a page, as lists of texts; the header first."""
    (table,) = re.findall(rf"{title}\s*</h3>.*?(<table.*?</table>)", page, flags=re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    plain = [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows
    ]
    return [[html.unescape(cell).replace("\N{NO-BREAK SPACE}", " ").strip() for cell in row] for row in plain]


def test_the_page_of_a_search_shows_its_front_and_leads_to_the_records(rdi, chromium):
    pytest.importorskip("optuna")
    line = SEARCH.replace("interval(0.01,0.1)", "choice(0.1,-1)") + " hydra.sweeper.sampler=random"
    result = rdi(line)
    assert result.status == 0, result.err
    assert "report:  reports/search/index.html" in result.out
    out = Path("reports/search")
    page = (out / "index.html").read_text()
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    header, *shown = cells(page, "All trials")
    assert header[:5] == ["trial", "state", "clean %", "worst case %", "MACs (M)"]
    assert [row[0] for row in shown] == [row["trial"] for row in rows]
    for one, row in zip(shown, rows, strict=True):
        kept = row["state"] == "complete"
        assert one[1] == row["state"] + (", on the front" if row["on_front"] == "True" else "")
        assert one[2] == (f"{100 * float(row['clean_accuracy']):.1f}" if kept else "-")
        assert one[header.index("optim.lr")] == row["optim.lr"]
        assert one[header.index("why")] == row["reason"]
    header, *front = cells(page, "The front")
    judged = [
        f"{split}: {name}" for split in ("validation", "test") for name in ("clean %", "worst case %", "MACs (M)")
    ]
    assert header[:7] == ["trial", *judged]
    assert (header[-2:], "-" in front[0][:7]) == (["record", "test record"], False)
    assert "The search looked at validation images alone" in page
    assert "Test columns: 40 clean images, worst of 1 attacks on 8." in page
    assert {row[0] for row in front} == {row["trial"] for row in rows if row["on_front"] == "True"}
    links = re.findall(r'title="([^"]*), sha256 ([0-9a-f]{64})"[^>]*><a href="([^"]*)">', page)
    complete = [row["run"] for row in rows if row["state"] == "complete"]
    paths = {path for path, _, _ in links}
    assert {f"{run}/manifest.json" for run in complete} < paths
    assert {str(path) for run in complete for path in Path(run, "evals").glob("*-worst.json")} < paths
    assert {"reports/search/trials.csv", "reports/search/front.csv"} < paths
    for path, sha, href in links:
        assert hashlib.sha256((out / unquote(html.unescape(href))).read_bytes()).hexdigest() == sha, path
    for width in (375, 1280):
        chromium.open(out / "index.html", width, 812)
        assert chromium.run("document.scrollingElement.scrollWidth") <= width
        assert chromium.run("document.querySelectorAll('[role=img] > svg').length") == 3
        assert chromium.messages == []
    # a run folder that is gone takes nothing from the page but the links
    for run in complete:
        shutil.rmtree(run)
    assert rdi(line).status == 0
    assert cells((out / "index.html").read_text(), "All trials")[1][:5] == shown[0][:5]


def test_the_jobs_of_an_unnamed_grid_have_one_group_in_wandb(rdi, monkeypatch):
    groups = []
    monkeypatch.setattr(train, "run", lambda cfg: groups.append(_edge.resolved(cfg)["tracking"]["group"]))
    for line in ("train -m seed=5,6 tracking=wandb", "train -m seed=6,5 tracking=wandb", "train seed=5 tracking=wandb"):
        assert rdi(line).status == 0
    assert len(set(groups[:4])) == 1
    assert groups[0].startswith("train-")
    assert groups[4:] == [None]
