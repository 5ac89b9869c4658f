"""Multi-exit networks and the ways to attach exits to a backbone."""

from rdi.exits.attach import CustomExits, NoExits, PaperExits, attach, normalised
from rdi.exits.heads import ConvPool, PoolLinear, PoolMLP
from rdi.exits.net import MultiExitNet, Normalise
from rdi.exits.whole import as_multi_exit

__all__ = [
    "ConvPool",
    "CustomExits",
    "MultiExitNet",
    "NoExits",
    "Normalise",
    "PaperExits",
    "PoolLinear",
    "PoolMLP",
    "as_multi_exit",
    "attach",
    "normalised",
]
