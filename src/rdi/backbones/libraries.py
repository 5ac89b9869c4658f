"""Networks of torchvision and timm as backbones: looked up by name in the library's own registry, random weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from rdi.backbones.base import Backbone
from rdi.backbones.cutting import cut
from rdi.deprecations import hidden
from rdi.errors import UserError, extra


def torchvision_model(shape: Sequence[int], classes: int, *, name: str) -> Backbone:
    """Build a classifier of torchvision.models, cut into blocks, with random weights.

    shape: (C, H, W) of one image.
    classes: number of classes.
    name: as torchvision.models.list_models() has it.
    Raises UserError for another name, images that do not fit and a network that cannot be cut.
    """
    with hidden():
        import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"backbone.name: torchvision has no classifier {name!r}; {_like(name, known)}")
    if shape[0] != 3:
        raise UserError(
            f"torchvision's networks take images of 3 channels, and these have {shape[0]}: take backbone=timm, whose "
            "networks take any number, or other images"
        )
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return cut(network, shape, classes, name)


def timm_model(shape: Sequence[int], classes: int, *, name: str) -> Backbone:
    """Build a classifier of timm, cut into blocks, with random weights; nothing is downloaded.

    shape: (C, H, W) of one image.
    classes: number of classes.
    name: as timm.list_models() has it.
    Raises UserError where timm is not installed, for another name, images that do not fit and a network that cannot be
        cut.
    """
    with extra("timm", "backbone=timm needs timm"), hidden():
        import timm
    # a name with a scheme, as hf-hub: or local-dir:, would read or fetch files
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or not timm.is_model(name):
        raise UserError(f"backbone.name: timm has no network {name!r}; {_like(str(name), timm.list_models())}")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0])
    return cut(network, shape, classes, name)


def _like(name: str, known: Sequence[str]) -> str:
    near = [one for one in known if one.startswith(name[:4])] or list(known)
    return f"it has {', '.join(near[:6])}, ..."
