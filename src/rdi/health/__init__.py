"""Checks of the evaluation itself: each asks a question whose answer is known if the attacks work as they should."""

from rdi.health.ball import ball_and_range
from rdi.health.black_box import black_box
from rdi.health.certified import Claim, Trial, certified
from rdi.health.evaluation import Evaluation, Extent
from rdi.health.fidelity import rejudged, silent_successes
from rdi.health.gated import gates
from rdi.health.gradients import zero_gradients
from rdi.health.planted import planted_weakness
from rdi.health.sample import enough, repeatable
from rdi.health.strength import eps_sweep, order, restarts, steps

__all__ = [
    "Claim",
    "Evaluation",
    "Extent",
    "Trial",
    "ball_and_range",
    "black_box",
    "certified",
    "enough",
    "eps_sweep",
    "gates",
    "order",
    "planted_weakness",
    "rejudged",
    "repeatable",
    "restarts",
    "silent_successes",
    "steps",
    "zero_gradients",
]
