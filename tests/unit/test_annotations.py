"""Plain values against annotations: what fits, and what a constructor must not be handed."""

import collections.abc
from pathlib import Path
from typing import Any, Literal

import pytest

from rdi import config
from rdi.annotations import fits, is_one, words
from rdi.attacks import APGD, Sign
from rdi.attacks.steps import StepRule
from rdi.errors import UserError

NODE = {"_target_": "rdi.thresholds.Entropy"}


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [1, -1, 2**70], [True, 1.0, "1", None, [], {}, NODE]),
        (float, [1, 1.5], [True, "1", None, [1.0], NODE]),
        (bool, [True], [1, 0, "true", None]),
        (str, ["", "x"], [1, None, [], True]),
        (int | None, [1, None], ["x", 1.5, [1]]),
        (Literal["a", "b"], ["a"], ["c", None, 1]),
        (collections.abc.Sequence[float], [[], [1, 2.5]], [1, "ab", [None], [[1]], ["x"], None]),
        (tuple[int, int], [[1, 2]], [[1], [1, 2, 3], [1, "x"]]),
        (tuple[int, ...], [[], [1, 2, 3]], [["x"], 1]),
        (dict[str, int], [{}, {"a": 1}], [[], 1, NODE]),
        (Path, [NODE], [1, "x", None, [], {}]),
        (Path | None, [NODE, None], [-1e9, "x", []]),
        (Any, [1, None, "x", NODE], []),
    ],
)
def test_what_fits_an_annotation(hint, good, bad):
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []
    assert words(hint) or hint is Any


ENTROPY = {"_target_": "rdi.thresholds.ShareRule", "score": NODE}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({**ENTROPY, "score": None}, "here.score must be a node with a _target_, got None"),
        ({**ENTROPY, "score": 3}, "here.score must be a node with a _target_, got 3"),
        ({"_target_": "rdi.defenses.Standard", "engine": -1e9}, "here.engine must be a node with a _target_ or null"),
        ({"_target_": "rdi.defenses.Standard", "exit_weights": "x"}, "here.exit_weights|defense.exit_weights"),
        ({"_target_": "rdi.defenses.Standard", "exit_weights": [0, 0.0]}, "must not all be 0"),
        ({"_target_": "rdi.data.Digits", "name": 1, "calibration": 9, "test": 9, "size": 8}, "here.name must be "),
        ({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0}, "refuses its options"),
    ],
)
def test_a_node_with_a_value_of_the_wrong_type_is_refused(node, said):
    with pytest.raises(UserError, match=said):
        config.build(node, "here")


def test_a_step_rule_is_what_an_attack_may_step_by():
    assert is_one(APGD(), StepRule | None)
    assert is_one(Sign(0.1), StepRule | None)
    assert is_one(APGD(), "StepRule | None"), "a name that could not be looked up rules nothing out"
    assert not is_one(APGD(), int | None)
