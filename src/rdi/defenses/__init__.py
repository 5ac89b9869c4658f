"""Defenses: training losses. One file each; the YAML names the class."""

from rdi.defenses.adversarial import Adversarial
from rdi.defenses.base import Defense
from rdi.defenses.fast import Fast
from rdi.defenses.standard import Standard

__all__ = ["Adversarial", "Defense", "Fast", "Standard"]
