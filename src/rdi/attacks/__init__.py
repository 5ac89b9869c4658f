"""Attacks: objects called as attack(model, x, y, generator) -> x_adv. One loop, small objectives and step rules."""

from rdi.attacks.apgd import APGD
from rdi.attacks.base import Attack, crafting, project
from rdi.attacks.gradient import Average, GradientAttack, MainExit, ObjectiveAttack, SingleExit
from rdi.attacks.max_average import MaxAverage
from rdi.attacks.steps import Sign, Wasserstein

__all__ = [
    "APGD",
    "Attack",
    "Average",
    "GradientAttack",
    "MainExit",
    "MaxAverage",
    "ObjectiveAttack",
    "Sign",
    "SingleExit",
    "Wasserstein",
    "crafting",
    "project",
]
