"""When the guard calls a collapse, and for how long the multi-step attack then trains; scripted accuracies."""

from dataclasses import replace

import pytest

from rdi.defenses.guard import Guard, Watch
from rdi.errors import UserError

GUARD = Guard(every=50, ratio=0.6, recover_steps=100)


def looks(multi_step, single_step=None, guard=GUARD, watch=None, classes=10):
    """The watch after each look, one every `guard.every` steps."""
    watch, seen = watch or Watch(), []
    for index, multi in enumerate(multi_step):
        single = multi if single_step is None else single_step[index]
        watch = guard.observe(watch, multi, single, classes)
        seen.append(watch)
        watch = replace(watch, step=watch.step + guard.every)
    return seen


def alone(values):
    return [[value] for value in values]


def test_a_training_that_learns_is_left_alone():
    seen = looks(alone([0.1, 0.2, 0.3, 0.35, 0.5, 0.4, 0.55, 0.5]))
    assert {watch.triggers for watch in seen} == {0}
    assert not any(watch.recovering for watch in seen)
    assert seen[-1].running == pytest.approx([0.48671875])
    assert seen[-1].best == seen[-1].running


def test_a_collapse_is_seen_at_the_next_look_and_recovered_from():
    seen = looks(alone([0.5, 0.5, 0.02, 0.3, 0.45, 0.5]))
    assert [watch.triggers for watch in seen] == [0, 0, 1, 1, 1, 1]
    assert seen[2].step == 100
    assert seen[2].recover_until == 200
    # the two looks within the recovery judge nothing; the one at its end starts from recovered values
    assert [watch.recovering for watch in seen] == [False, False, True, True, False, False]
    assert (seen[2].running, seen[2].best) == ((), (0.5,))
    assert seen[3].running == (0.3,)


def test_the_running_value_forgives_one_bad_batch_and_no_second_one():
    seen = looks(alone([0.5, 0.2, 0.5, 0.2, 0.2]))
    assert [watch.triggers for watch in seen] == [0, 0, 0, 0, 1]


def test_every_recovery_is_twice_as_long_as_the_one_before():
    watch, lengths = Watch(best=(0.5,)), []
    for _ in range(4):
        watch = GUARD.observe(watch, [0.0], [0.0], 10)
        lengths.append(watch.recover_until - watch.step)
        watch = replace(watch, step=watch.recover_until)
        assert not watch.recovering
    assert lengths == [100, 200, 400, 800]
    assert watch.triggers == 4


def test_no_collapse_is_called_while_recovering():
    first = GUARD.observe(Watch(best=(0.5,)), [0.0], [0.0], 10)
    again = GUARD.observe(replace(first, step=99), [0.0], [1.0], 10)
    assert (again.triggers, again.recover_until) == (1, 100)
    assert again.multi_step == (0.0,)
    assert GUARD.observe(replace(first, step=100), [0.0], [1.0], 10).triggers == 2


def test_one_collapsed_exit_of_seven_is_enough():
    healthy, broken = [0.5] * 7, [0.5] * 3 + [0.0] + [0.6] * 3
    assert sum(broken) / 7 > 0.9 * sum(healthy) / 7, "the mean over exits hardly moves"
    assert [watch.triggers for watch in looks([healthy, broken])] == [0, 1]


@pytest.mark.parametrize(
    ("multi", "single", "triggers"),
    [
        (0.05, 0.9, 1),  # learned the single step and never any resistance: no best value to fall from
        (0.09, 0.5, 1),
        (0.11, 0.5, 0),
        (0.0, 0.4, 0),  # has learned nothing yet
        (0.3, 0.95, 0),
    ],
)
def test_an_exit_that_only_withstands_the_single_step_has_collapsed(multi, single, triggers):
    assert looks([[multi]], [[single]])[0].triggers == triggers


@pytest.mark.parametrize(("classes", "triggers"), [(2, 0), (10, 0), (100, 1)])
def test_falling_from_next_to_chance_is_no_collapse(classes, triggers):
    assert looks(alone([0.14, 0.0]), classes=classes)[-1].triggers == triggers


def test_looks_come_every_so_many_steps_and_before_the_first():
    assert [step for step in range(120) if GUARD.due(Watch(step=step))] == [0, 50, 100]


@pytest.mark.parametrize(
    ("option", "value"),
    [("every", 0), ("images", 0), ("ratio", 1.1), ("ratio", -0.1), ("recover_steps", 0), ("recover_steps", 1.5)],
)
def test_values_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=option):
        Guard(**{option: value})
