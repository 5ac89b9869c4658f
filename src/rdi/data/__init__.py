"""Data sets in memory or on disk, their splits, and batches of them."""

from rdi.data.arrays import ArrayFile
from rdi.data.augment import augment
from rdi.data.base import DataSet, Raw, Source, Split
from rdi.data.batches import Shuffled, to_float
from rdi.data.digits import Digits
from rdi.data.imagefolder import ImageFolder
from rdi.data.shards import Shards
from rdi.data.torchvision import Torchvision

__all__ = [
    "ArrayFile",
    "DataSet",
    "Digits",
    "ImageFolder",
    "Raw",
    "Shards",
    "Shuffled",
    "Source",
    "Split",
    "Torchvision",
    "augment",
    "to_float",
]
