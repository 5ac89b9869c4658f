"""The files of sweeps/, the jobs that sweepers make of them, and what several jobs come to."""

import csv
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.rdi_sweepers.grid import Grid, named
from hydra_plugins.rdi_sweepers.tune import Tune
from rdi.cli import _edge, _schema, _search, _sweeps
from rdi.cli._hydra import conf_dir
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.packaged import packaged
from rdi.records import Manifest, read
from rdi.runs import search as stage
from rdi.runs.identity import identity
from rdi.runs.outcome import Outcome, following, ranking
from rdi.searching import Choices, Interval, Search, Trial
from rdi.tracking import NoTracking

SWEEPS = sorted(path.stem for path in packaged("sweeps").glob("*.yaml"))
COMMANDS = {"thresholds": ("evaluate", ["run=runs/x"])}
ROOT = Path(__file__).resolve().parents[2]


def composed(command, *overrides, hydra=False):
    """The config of a command with Hydra's own part or without."""
    _schema.register()
    _sweeps.register(conf_dir())
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides), return_hydra_config=hydra)


def swept(name):
    """Command, options beside the sweep, and the sweeper's config of a file in sweeps/."""
    command, options = COMMANDS.get(name, ("run", []))
    config = composed(command, f"sweep={name}", *options, hydra=True)
    assert config.hydra.mode.name == "MULTIRUN", "it runs without -m"
    assert config.sweep == name, "the name of the file"
    node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    return command, options, node


def grid(params=None, grids=None, max_batch_size=None):
    """A Grid that was set up, apart from a config and a launcher."""
    made = Grid(params=params, grids=grids, max_batch_size=max_batch_size)
    made.hydra_context = SimpleNamespace(config_loader=None)
    return made


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_makes_different_jobs_that_compose(name):
    command, options, node = swept(name)
    target = node.pop("_target_")
    if target.endswith("Tune"):
        space, fixed = _search.split(parsed(*(f"{key}={value}" for key, value in node["params"].items())))
        assert space
        jobs = [[*options, *fixed, *stage.example(space)]]
    else:
        jobs = grid(**node).jobs([f"sweep={name}", *options])
        assert len(jobs) > 1
    configs = [_edge.resolved(_schema.validated(composed(command, *job))) for job in jobs]
    # what differs is what is trained, or the exit rule that `rdi evaluate` judges by
    assert len({str(c["threshold"]) if command == "evaluate" else identity(c) for c in configs}) == len(jobs)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_says_how_to_run_it(name):
    first, second, *_ = (packaged("sweeps") / f"{name}.yaml").read_text().splitlines()
    assert first == "# @package _global_", "so that it also works from a folder of the user's"
    assert f"sweep={name}" in second


def test_a_run_of_a_sweep_is_the_run_without_it_and_is_grouped_by_its_name():
    alone = _edge.resolved(composed("run", "seed=3"))
    of_sweep = _edge.resolved(composed("run", "sweep=seeds", "seed=3"))
    assert identity(alone) == identity(of_sweep)
    assert (alone["tracking"]["group"], of_sweep["tracking"]["group"]) == (None, "seeds")
    assert _edge.resolved(composed("run", "sweep=seeds", "tracking.group=mine"))["tracking"]["group"] == "mine"
    assert "group" not in _edge.resolved(composed("run", "sweep=seeds", "tracking=none"))["tracking"]
    assert _edge.resolved(composed("pareto", "runs=[x]"))["tracking"]["group"] is None


def test_the_jobs_of_a_grid_without_a_name_are_one_group_in_wandb(monkeypatch):
    jobs = [["seed=0", "data=mnist"], ["seed=1", "data=mnist"]]
    name = named("train", jobs)
    assert re.fullmatch(r"train-[0-9a-f]{8}", name)
    assert named("train", [list(reversed(job)) for job in reversed(jobs)]) == name
    assert named("run", jobs) != name != named("train", jobs[:1])
    job = composed("train", "tracking=wandb", "seed=1")
    hydra = SimpleNamespace(job=SimpleNamespace(env_set={_edge.GRID: name}), mode=RunMode.MULTIRUN)
    monkeypatch.setattr(_edge.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(_edge.HydraConfig, "get", lambda: hydra)
    assert _edge.resolved(job)["tracking"]["group"] == name
    mine = composed("train", "tracking=wandb", "tracking.group=mine")
    assert _edge.resolved(mine)["tracking"]["group"] == "mine"
    assert "group" not in _edge.resolved(composed("train", "tracking=none"))["tracking"]
    monkeypatch.setattr(hydra, "mode", RunMode.RUN)
    assert _edge.resolved(job)["tracking"]["group"] is None


def test_pixel_levels_in_a_sweep_file():
    _, _, node = swept("eps")
    assert node["params"]["threat.eps"].split(",")[1] == str(8 / 255)


def test_what_is_typed_replaces_an_option_of_the_grid_or_adds_one():
    made = grid({"seed": "0,1,2", "threat.eps": "0.1,0.2"})
    assert len(made.jobs([])) == 6
    assert made.jobs(["seed=7", "data=mnist"]) == [
        ["seed=7", "threat.eps=0.1", "data=mnist"],
        ["seed=7", "threat.eps=0.2", "data=mnist"],
    ]
    assert len(made.jobs(["optim.lr=1,2"])) == 12


def test_several_grids_lie_side_by_side_and_equal_jobs_run_once():
    made = grid({"seed": "0,1"}, [{"defense": "standard"}, {"defense": "adversarial", "attack": "main,average"}])
    assert [" ".join(job) for job in made.jobs([])] == [
        "seed=0 defense=standard",
        "seed=1 defense=standard",
        "seed=0 defense=adversarial attack=main",
        "seed=0 defense=adversarial attack=average",
        "seed=1 defense=adversarial attack=main",
        "seed=1 defense=adversarial attack=average",
    ]
    assert made.jobs(["seed=0", "attack=main"]) == [
        ["seed=0", "defense=standard", "attack=main"],
        ["seed=0", "defense=adversarial", "attack=main"],
    ]
    assert grid({"seed": "1,1"}).jobs(["~normalise", "run='a b'"]) == [["seed=1", "~normalise", "run='a b'"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["optim.lr=interval(0,1)"], "no end of values"), (["sweep=a,b"], "one sweep at a time")],
)
def test_what_has_no_grid_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        grid().jobs(words)


def parsed(*words):
    return OverridesParser.create(config_loader=None).parse_overrides(list(words))


def test_the_space_of_a_search_is_what_hydras_grammar_says():
    space, fixed = _search.split(
        parsed(
            "data=mnist",
            "attack=average,max_avg",
            "lr=interval(0.1,0.5)",
            "+new=tag(log,interval(0.01,0.1))",
            "steps=int(interval(1,5))",
            "depth=range(2,9,3)",
            "scale=range(0.5,2.1,0.5)",
            "weights=[1,1],[1,2]",
            "alpha=choice(0.1,0.9)",
            "data=digits",
            "lr=interval(0.2,0.4)",
            "alpha=0.3",
        )
    )
    assert space == {
        "attack": Choices(("average", "max_avg")),
        "lr": Interval(0.2, 0.4),
        "+new": Interval(0.01, 0.1, log=True),
        "steps": Interval(1, 5, whole=True),
        "depth": Interval(2, 8, step=3, whole=True),
        "scale": Interval(0.5, 2.0, step=0.5),
        "weights": Choices(("[1,1]", "[1,2]")),
    }
    assert fixed == ["data=digits", "alpha=0.3"]
    assert {"attack=average", "lr=0.2", "+new=0.01"} <= set(stage.example(space))
    with pytest.raises(UserError, match="is empty"):
        _search.split(parsed("depth=range(3,3)"))


def test_a_search_goes_on_whatever_the_machine_but_not_with_other_options():
    words = ["seed=1", "threads=2", "device=cpu", "tracking=none", "tracking.group=x", "data.root=here", "sweep=search"]
    assert stage.lasting([*words, "data=mnist", "samples=10", "~normalise"]) == [
        "data=mnist",
        "samples=10",
        "seed=1",
        "~normalise",
    ]


def test_an_outcome_is_its_objectives_and_survives_pickling():
    made = pickle.loads(pickle.dumps(Outcome("runs/x", skipped=True, objectives=(0.9, 0.5, 1e6), split="validation")))
    assert (*made, made.folder, made.skipped, made.split) == (0.9, 0.5, 1e6, "runs/x", True, "validation")
    assert not Outcome("runs/x", skipped=False)


def ended(value, status=JobStatus.COMPLETED):
    result = JobReturn(status=status)
    result.return_value = value
    return result


JOBS = [["data=mnist", "seed=0"], ["data=mnist", "seed=1"], ["data=mnist", "seed=2"], ["data=mnist", "seed=3"]]


def test_the_end_of_a_sweep_counts_what_was_finished_before_and_names_what_failed(said):
    results = [
        ended(Outcome("runs/a", skipped=True)),
        ended(UserError("attack.eps must be in [0, 1], got 7"), JobStatus.FAILED),
        ended(Outcome("runs/b", skipped=False)),
        ended(Outcome("runs/c", skipped=True)),
    ]
    with pytest.raises(_sweeps.SweepFailed, match=r"1 of 4 jobs failed, the first: attack\.eps") as caught:
        _sweeps.conclude("eps", JOBS, results)
    assert "the same command again goes on" in str(caught.value)
    assert not caught.value.bug
    assert said == [
        "eps: 3 of 4 jobs are finished, 2 of 4 were finished before: skipped, 1 failed:",
        "  job 1 (seed=1): attack.eps must be in [0, 1], got 7",
    ]
    _sweeps.conclude("eps", JOBS[:1], results[:1])
    assert said[2:] == ["eps: 1 of 1 jobs are finished, 1 of 1 were finished before: skipped"]


def test_a_bug_in_a_job_is_told_from_a_mistake():
    results = [ended(None), ended(KeyError("x"), JobStatus.FAILED)]
    with pytest.raises(_sweeps.SweepFailed, match="KeyError: 'x'") as caught:
        _sweeps.conclude("sweep", JOBS[:2], results)
    assert caught.value.bug
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_next_command_draws_what_was_judged_on_test_images_or_is_the_next_stage():
    judged = [Outcome(f"runs/{name}", skipped=False, objectives=(0.9, 0.5, 1e6)) for name in "aab"]
    follows = following
    assert follows("run", [*judged, None, KeyError()], "eps") == "rdi pareto 'runs=[runs/a,runs/b]' name=eps"
    assert follows("evaluate", judged[:2], "eps") == "rdi report runs=[runs/a]"
    trained = [Outcome("runs/a", skipped=False), Outcome("runs/b", skipped=False)]
    assert follows("train", trained, "eps") == "rdi attack -m run=runs/a,runs/b"
    assert follows("attack", trained, "eps") == "rdi evaluate -m run=runs/a,runs/b"
    assert follows("run", trained, "eps") is None
    many = [Outcome(f"runs/r{n}", skipped=False) for n in range(2000)]
    assert follows("train", many, "eps") == "rdi attack -m run=runs/r0,runs/r1,...,runs/r1999"
    held_out = [Outcome(f"runs/{n}", skipped=False, objectives=(0.9, 0.5, 1e6), split="validation") for n in "ab"]
    assert follows("run", held_out, "eps") is None, "fronts are of test images"


def values(results):
    return [result._return_value for result in results]


BESIDE = {"x": {"certified": 0.25}, "y": {"corrupted": 0.6}}


def test_the_ranking_has_the_best_worst_case_first_and_fits():
    results = [
        ended(Outcome("runs/a", skipped=False, objectives=(0.9, 0.5, 2e6), policy="entropy")),
        ended(UserError("no"), JobStatus.FAILED),
        ended(Outcome("runs/b", skipped=False, objectives=(0.8, 0.7, 3e6))),
        ended(Outcome("runs/c", skipped=True, objectives=(0.9, 0.5, 1e6))),
    ]
    text = ranking(_sweeps.varied(JOBS), values(results))
    rows = [line.split() for line in text.splitlines()]
    assert [row[1:] for row in rows if row and row[0].isdigit()] == [
        ["seed=2", "70.0", "80.0", "3.00", "runs/b"],
        ["seed=3", "50.0", "90.0", "1.00", "runs/c"],
        ["seed=0", "50.0", "90.0", "2.00", "runs/a"],
    ]
    further = [Outcome(f"runs/{n}", skipped=False, objectives=(0.9, 0.5, 2e6), beside=b) for n, b in BESIDE.items()]
    columns = ranking(["a", "b"], [pickle.loads(pickle.dumps(one)) for one in further]).splitlines()
    assert "certified %  corrupted %  clean %" in columns[3]
    assert [line.split()[2:5] for line in columns[5:]] == [["50.0", "25.0", "-"], ["50.0", "-", "60.0"]]
    long = [[f"option.number{k}={'x' * k}" for k in range(12)] for _ in range(2)]
    wide = ranking(_sweeps.varied([[*long[0], "a=1"], [*long[1], "a=2"]]), values([results[0], results[2]]))
    assert max(map(len, wide.splitlines())) <= 80
    assert ranking(["a", "b"], values(results[:2])) is None
    assert ranking(["a", "b"], [None, Outcome("runs/x", skipped=False)]) is None


class Lost(Exception):
    """As submitit raises it."""


Lost.__module__ = "submitit.core.utils"


@pytest.mark.parametrize(("error", "shown"), [(Lost("job 3 is gone"), UserError), (KeyError("x"), KeyError)])
def test_a_launcher_that_loses_a_job(error, shown):
    def launch(jobs, initial_job_idx):
        raise error

    with pytest.raises(shown, match="the same command again goes on" if shown is UserError else "x"):
        _sweeps.launch(SimpleNamespace(launch=launch), JOBS, 0)


@pytest.fixture
def search(tmp_path):
    """A search for all three objectives over one option."""
    pytest.importorskip("optuna")
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "tune.yaml"))
    return Search(tmp_path / "study.db", node["objectives"], {"optim.lr": Interval(0.01, 0.1)}, {}, "random", 0)


def test_trials_are_run_told_and_written(search, tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results" / "demo", tmp_path / "runs" / "a")
    outcomes = [
        Outcome("runs/a", skipped=False, objectives=(0.9, 0.5, 5.57e6), policy="entropy"),
        "the disk is full",
        Outcome("runs/a", skipped=False),
        Outcome("runs/a", skipped=False, objectives=(0.8, 0.4, 6e6), policy="entropy"),
    ]
    launched = []

    def launch(jobs, first):
        launched.append((first, jobs))
        return [outcomes.pop(0) for _ in jobs]

    trials = stage.go_on(search, "x", tmp_path, ["data=mnist"], 4, 3, launch)
    assert [(first, len(jobs)) for first, jobs in launched] == [(0, 3), (3, 1)]
    assert launched[0][1][0] == ["data=mnist", f"optim.lr={trials[0].params['optim.lr']}"]
    assert [trial.reason for trial in trials[1:3]] == [
        "the disk is full",
        next(line for line in (trial.reason for trial in trials) if "nothing was judged under attack" in line),
    ]
    printed = stage.conclude(search, "x", tmp_path, NoTracking(), {})
    rows = list(csv.DictReader((tmp_path / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete", "failed", "failed", "complete"]
    assert [row["mean_macs"] for row in rows] == ["5570000.0", "", "", "6000000.0"]
    (front,) = csv.DictReader((tmp_path / "front.csv").open())
    assert (front["trial"], front["clean_accuracy"], front["run"]) == ("0", "0.9", "runs/a")
    assert "search x: 2 complete, 2 failed; 1 on the front" in printed
    assert "optimistic" in printed
    # the demo's network costs 11.14 M at most
    most = read(RunFolder("runs/a").manifest, Manifest).costs.macs[-1]
    assert f"hypervolume {0.9 * 0.5 * (1 - 5.57e6 / most):.4f} of the box from 0 % clean, 0 % worst case" in printed
    assert "trial 1 failed: the disk is full" in said
    # once more: nothing is left to do
    launched.clear()
    stage.go_on(search, "x", tmp_path, ["data=mnist"], 4, 3, launch)
    assert launched == []
    assert said[-1] == "search x goes on: 4 of 4 trials are done"


def test_a_search_without_a_complete_trial_says_why(search, tmp_path):
    stage.go_on(search, "x", tmp_path, [], 1, 1, lambda jobs, first: ["the disk is full"])
    with pytest.raises(UserError, match="the last one failed: the disk is full; mend that"):
        stage.conclude(search, "x", tmp_path, NoTracking(), {})
    assert (tmp_path / "front.csv").read_text() == ""
    assert "the disk is full" in (tmp_path / "trials.csv").read_text()


def test_no_hypervolume_without_the_run_folders_or_for_one_objective():
    trial = Trial(0, {}, "complete", (0.9, 0.5, 1e6), "runs/gone", "", 1.0)
    three = {"clean_accuracy": "maximize", "worst_accuracy": "maximize", "mean_macs": "minimize"}
    assert stage.hypervolume([trial], three) == (None, "")
    two = {"clean_accuracy": "maximize", "worst_accuracy": "maximize"}
    one = Trial(0, {}, "complete", (0.9,), "runs/gone", "", 1.0)
    assert stage.hypervolume([one], {"clean_accuracy": "maximize"}) == (None, "")
    both = Trial(0, {}, "complete", (0.9, 0.5), "runs/gone", "", 1.0)
    assert stage.hypervolume([both], two) == (pytest.approx(0.45), "0 % clean, 0 % worst case")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials must be at least 1"),
        ({"n_jobs": "two"}, "hydra.sweeper.n_jobs must be a whole number"),
        (
            {"objectives": {"speed": "maximize"}},
            "an objective must be one of clean_accuracy, worst_accuracy, mean_macs",
        ),
        ({"seed": -1}, "hydra.sweeper.seed must be at least 0"),
    ],
)
def test_options_of_a_search_are_checked(wrong, message):
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "tune.yaml"))
    del node["_target_"]
    with pytest.raises(UserError, match=message):
        Tune(**{**node, **wrong})
