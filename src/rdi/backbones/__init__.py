"""Backbones: functions (shape, classes, **options) -> Backbone. One file per family; the YAML names the function."""

from rdi.backbones.base import Backbone, HeadFactory, feature_shapes
from rdi.backbones.libraries import timm_model, torchvision_model
from rdi.backbones.mobilenetv2 import mobilenetv2
from rdi.backbones.msdnet import msdnet
from rdi.backbones.resnet import resnet
from rdi.backbones.smallcnn import smallcnn

__all__ = [
    "Backbone",
    "HeadFactory",
    "feature_shapes",
    "mobilenetv2",
    "msdnet",
    "resnet",
    "smallcnn",
    "timm_model",
    "torchvision_model",
]
