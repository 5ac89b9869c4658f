"""Gated networks: an LSTM decides per image which blocks of a ResNet, and which of their channels, are computed."""

from rdi.gates.net import GatedNet
from rdi.gates.training import Gates, NoGates

__all__ = ["GatedNet", "Gates", "NoGates"]
