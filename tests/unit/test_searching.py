"""A search: what it asks, what it keeps, and how another process goes on with it."""

import itertools

import pytest

from rdi.errors import UserError
from rdi.searching import COMPLETE, FAILED, KILLED, Choices, Interval, Search

pytest.importorskip("optuna")
OBJECTIVES = {"clean_accuracy": "maximize", "mean_macs": "minimize"}
SPACE = {
    "attack": Choices(("average", "max_avg")),
    "lr": Interval(0.01, 0.1, log=True),
    "steps": Interval(1, 7, step=2, whole=True),
    "scale": Interval(0.5, 2.0, step=0.25),
}
SETTINGS = {"command": "run", "options": ["data=mnist"]}


@pytest.fixture
def begin(tmp_path):
    """begin(...) -> a Search in the same file each time."""

    def make(objectives=OBJECTIVES, space=SPACE, settings=SETTINGS, sampler="random", seed=0):
        return Search(tmp_path / "study.db", objectives, space, settings, sampler, seed)

    return make


def test_points_lie_in_the_space(begin):
    search = begin()
    for _ in range(8):
        _, point = search.ask()
        assert list(point) == list(SPACE)
        assert point["attack"] in ("average", "max_avg")
        assert 0.01 <= point["lr"] <= 0.1
        assert point["steps"] in (1, 3, 5, 7)
        assert point["scale"] in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def test_the_front_is_of_complete_trials_only(begin):
    search = begin()
    numbers = [search.ask()[0] for _ in range(4)]
    assert numbers == [0, 1, 2, 3]
    search.tell(0, (0.9, 10.0), "runs/a")
    search.tell(1, (0.8, 20.0), "runs/b")
    search.fail(2, "no disk")
    search.tell(3, (0.5, 5.0), "runs/c")
    trials = search.trials()
    assert [trial.state for trial in trials] == [COMPLETE, COMPLETE, FAILED, COMPLETE]
    assert [trial.on_front for trial in trials] == [True, False, False, True]
    assert [trial.run for trial in trials] == ["runs/a", "runs/b", "", "runs/c"]
    assert (trials[2].values, trials[2].reason) == (None, "no disk")
    assert trials[0].values == (0.9, 10.0)
    assert all(trial.seconds >= 0 for trial in trials)
    assert search.ended() == 4


def test_what_a_killed_process_left_is_asked_again_and_not_counted(begin):
    first = begin()
    first.tell(first.ask()[0], (0.9, 10.0), "runs/a")
    lost = first.ask()[1]
    del first
    search = begin()
    assert search.recover() == 1
    assert search.ended() == 1
    number, point = search.ask()
    assert (number, point) == (2, lost)
    search.tell(2, (0.8, 1.0), "runs/b")
    assert search.ended() == 2
    assert [trial.state for trial in search.trials()] == [COMPLETE, KILLED, COMPLETE]
    assert search.recover() == 0


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_search_that_goes_on_does_not_propose_its_first_trials_again(begin, sampler):
    points = []
    for _ in range(3):
        search = begin(sampler=sampler)
        for _ in range(2):
            number, point = search.ask()
            search.tell(number, (0.5, 1.0), "runs/a")
            points.append(point["lr"])
    assert len(set(points)) == 6


def test_the_same_seed_proposes_the_same(tmp_path):
    def points(name, seed):
        search = Search(tmp_path / name, OBJECTIVES, SPACE, SETTINGS, "tpe", seed)
        return [search.ask()[1] for _ in range(3)]

    assert points("a.db", 1) == points("b.db", 1) != points("c.db", 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {**SETTINGS, "options": ["data=digits"]}}, r"options: \['data=mnist'\] -> \['data=digits'\]"),
        ({"space": {**SPACE, "lr": Interval(0.01, 0.2, log=True)}}, r"space\.lr: "),
        ({"space": {"lr": SPACE["lr"]}}, r"space\.attack: "),
        ({"objectives": dict(reversed(OBJECTIVES.items()))}, "objectives: "),
        ({"objectives": {**OBJECTIVES, "mean_macs": "maximize"}}, "objectives: "),
    ],
)
def test_a_search_for_something_else_is_refused(begin, changed, message):
    begin()
    with pytest.raises(UserError, match=f"was begun with other settings.*{message}"):
        begin(**changed)
    assert begin().ended() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objectives": {}}, "needs an objective"),
        ({"objectives": {"clean_accuracy": "up"}}, "the direction of clean_accuracy must be one of maximize, minimize"),
        ({"space": {}}, "needs a space"),
        ({"space": {"lr": Interval(0.2, 0.1)}}, "^lr: "),
        ({"space": {"lr": Interval(0.0, 0.1, log=True)}}, "^lr: "),
        ({"sampler": "best"}, "sampler must be one of tpe, nsga2, random"),
    ],
)
def test_what_cannot_be_searched_is_refused(begin, wrong, message):
    with pytest.raises(UserError, match=message):
        begin(**wrong)


def test_without_optuna_the_extra_is_named(begin, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'rdi\[search\]'"):
        begin()


def test_a_search_of_one_objective(begin):
    search = begin(objectives={"clean_accuracy": "maximize"})
    for value in (0.1, 0.9, 0.5):
        search.tell(search.ask()[0], (value,), "runs/a")
    assert [trial.on_front for trial in search.trials()] == [False, True, False]
    assert all(a.number < b.number for a, b in itertools.pairwise(search.trials()))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_killed_search_proposes_what_an_unbroken_one_does(sampler, tmp_path):
    def search(name):
        return Search(tmp_path / f"{name}.db", OBJECTIVES, SPACE, SETTINGS, sampler, 3)

    def values(point):
        return (point["lr"], float(point["steps"]))

    def go_on(search, count):
        points = []
        for _ in range(count):
            number, point = search.ask()
            search.tell(number, values(point), "run")
            points.append(point)
        return points

    unbroken = go_on(search("unbroken"), 14)
    first = search("killed")
    found = go_on(first, 5)
    first.ask()  # killed while this trial runs
    second = search("killed")
    assert second.recover() == 1
    found += go_on(second, 6)
    found += go_on(search("killed"), 3)  # stopped between two trials
    assert found == unbroken
