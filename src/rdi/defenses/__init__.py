"""Defenses: training losses. One file each; the YAML names the class."""

from rdi.defenses.adversarial import Adversarial
from rdi.defenses.base import Defense
from rdi.defenses.composed import Composed
from rdi.defenses.fast import Fast
from rdi.defenses.one_step import OneStep
from rdi.defenses.standard import Standard
from rdi.defenses.terms import CrossEntropy, Pairing, Term

__all__ = ["Adversarial", "Composed", "CrossEntropy", "Defense", "Fast", "OneStep", "Pairing", "Standard", "Term"]
