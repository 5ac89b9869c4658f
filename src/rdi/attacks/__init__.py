"""Attacks: objects called as attack(model, x, y, generator) -> x_adv. One loop, small objectives and step rules."""

from rdi.attacks.apgd import APGD
from rdi.attacks.autoattack import AutoAttack
from rdi.attacks.base import Attack, crafting
from rdi.attacks.confident_wrong import ConfidentWrong
from rdi.attacks.ensemble import Ensemble
from rdi.attacks.gradient import Average, GradientAttack, MainExit, ObjectiveAttack, SingleExit
from rdi.attacks.hop_skip_jump import HopSkipJump
from rdi.attacks.max_average import MaxAverage
from rdi.attacks.min_max import MinMax
from rdi.attacks.norms import Ball, project
from rdi.attacks.policy import PolicyAttack
from rdi.attacks.routed import Routed
from rdi.attacks.slowdown import Joint, Slowdown
from rdi.attacks.soft import Soft
from rdi.attacks.square import Square
from rdi.attacks.steps import Sign, Wasserstein
from rdi.attacks.targeted import Targeted
from rdi.attacks.transfer import Surrogate, Transfer

__all__ = [
    "APGD",
    "Attack",
    "AutoAttack",
    "Average",
    "Ball",
    "ConfidentWrong",
    "Ensemble",
    "GradientAttack",
    "HopSkipJump",
    "Joint",
    "MainExit",
    "MaxAverage",
    "MinMax",
    "ObjectiveAttack",
    "PolicyAttack",
    "Routed",
    "Sign",
    "SingleExit",
    "Slowdown",
    "Soft",
    "Square",
    "Surrogate",
    "Targeted",
    "Transfer",
    "Wasserstein",
    "crafting",
    "project",
]
