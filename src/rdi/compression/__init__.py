"""Compressed networks to compare multi-exit ones with: fewer channels, fewer weights, fewer bits per weight."""

from rdi.compression.atmc import ATMC
from rdi.compression.bap import BAP
from rdi.compression.base import Compression, NoCompression, layer_weights, project
from rdi.compression.chains import Chain, chains, keep_channels
from rdi.compression.channels import Channels
from rdi.compression.l0 import L0
from rdi.compression.quantise import quantise
from rdi.compression.reweighted import Reweighted
from rdi.compression.size import measure

__all__ = [
    "ATMC",
    "BAP",
    "L0",
    "Chain",
    "Channels",
    "Compression",
    "NoCompression",
    "Reweighted",
    "chains",
    "keep_channels",
    "layer_weights",
    "measure",
    "project",
    "quantise",
]
