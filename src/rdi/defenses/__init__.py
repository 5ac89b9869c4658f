"""Defenses: training losses. One file each; the YAML names the class."""

from rdi.attacks.simplex import MinMaxWeights
from rdi.defenses.adversarial import Adversarial
from rdi.defenses.base import Defense
from rdi.defenses.blind import Blind
from rdi.defenses.boosted import Boosted
from rdi.defenses.carried import Carried
from rdi.defenses.certified import Certified
from rdi.defenses.composed import Composed
from rdi.defenses.crafting import Crafting
from rdi.defenses.decision import DeployedDecision
from rdi.defenses.distillation import NeighbourDistillation, OrthogonalDistillation
from rdi.defenses.fast import Fast
from rdi.defenses.gradient_sign import GradientSign
from rdi.defenses.min_max import MinMaxAttacks
from rdi.defenses.standard import Standard
from rdi.defenses.terms import CrossEntropy, Pairing, Term
from rdi.defenses.weight_perturbation import WeightPerturbation

__all__ = [
    "Adversarial",
    "Blind",
    "Boosted",
    "Carried",
    "Certified",
    "Composed",
    "Crafting",
    "CrossEntropy",
    "Defense",
    "DeployedDecision",
    "Fast",
    "GradientSign",
    "MinMaxAttacks",
    "MinMaxWeights",
    "NeighbourDistillation",
    "OrthogonalDistillation",
    "Pairing",
    "Standard",
    "Term",
    "WeightPerturbation",
]
