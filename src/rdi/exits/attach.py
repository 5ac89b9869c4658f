"""Attach exits to a backbone: heads behind some of its blocks. Each class maps a Backbone to a MultiExitNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from rdi.backbones.base import Backbone, HeadFactory
from rdi.backbones.cutting import tap_number
from rdi.checks import integer
from rdi.errors import UserError
from rdi.exits.heads import output_classes
from rdi.exits.net import MultiExitNet, Normalise

Attach = Callable[[Backbone], MultiExitNet]


def attach(backbone: Backbone, exits: Sequence[tuple[int, HeadFactory]]) -> MultiExitNet:
    """Cut the blocks after each tap into stages and put a head on each; the classifier is the last head.

    backbone: a plain network cut into blocks.
    exits: (tap, head) with tap = 0-based block index, strictly ascending, before the last block.
    Raises UserError for taps that do not exist and heads that do not fit there or do not return logits_NC.
    """
    taps = [tap for tap, _ in exits]
    last = len(backbone.blocks) - 1
    if any(not 0 <= tap < last for tap in taps) or sorted(set(taps)) != taps:
        raise UserError(
            f"exits.taps must be ascending block numbers from 0 to {last - 1} for this backbone, got {taps}"
        )
    stages, start = [], 0
    for end in [*taps, last]:
        stages.append(nn.Sequential(*backbone.blocks[start : end + 1]))
        start = end + 1
    heads = [head(backbone.shapes[tap], backbone.classes) for tap, head in exits]
    for tap, head in zip(taps, heads, strict=True):
        try:
            shape = output_classes(head, backbone.shapes[tap])
        except RuntimeError as error:
            size = "x".join(str(n) for n in backbone.shapes[tap])
            reason = str(error).splitlines()[0]
            raise UserError(f"features of {size} do not fit the head at tap {tap}: {reason}") from error
        if shape != (backbone.classes,):
            raise UserError(f"the head at tap {tap} returns {shape} per sample, not ({backbone.classes},) logits")
    return MultiExitNet(stages, [*heads, backbone.classifier])


def adopt(net: MultiExitNet, trained: MultiExitNet) -> bool:
    """Give `net` the weights of `trained`: all of them, or all but those of early heads that only one of them has.

    The second where one of them is the other's backbone without early exits. Returns whether it is. Raises
    RuntimeError, as load_state_dict does, for another network.
    """
    ours, theirs = chain(net), chain(trained)
    if (net.exits == 1) == (trained.exits == 1) or len(ours) != len(theirs):
        net.load_state_dict(trained.state_dict())
        return False
    for mine, other in zip([*ours, net.heads[-1]], [*theirs, trained.heads[-1]], strict=True):
        mine.load_state_dict(other.state_dict())
    return True


def chain(net: MultiExitNet) -> list[nn.Module]:
    """Return the blocks of a network that `attach` or `normalised` made, in order, whichever stages they are in."""
    found: list[nn.Module] = []
    for stage in net.stages:
        for block in stage.children():
            # a normalised network has its first stage inside another one
            inside = isinstance(block, nn.Sequential) and isinstance(next(stage.children()), Normalise)
            found += block.children() if inside else [block]
    return found


def normalised(model: MultiExitNet, mean: Sequence[float], std: Sequence[float]) -> MultiExitNet:
    """Return the network with the normalisation as the first step of stage 0.

    model: expects normalised images.
    mean, std: one number per channel.
    """
    return MultiExitNet([nn.Sequential(Normalise(mean, std), model.stages[0]), *model.stages[1:]], model.heads)


class PaperExits:
    """Taps and heads of Hu et al. (ICLR 2020) for this backbone."""

    def __call__(self, backbone: Backbone) -> MultiExitNet:
        """Attach the published exits. Raises UserError for a backbone without them."""
        if not backbone.paper_exits:
            raise UserError("this backbone has no published exits: use exits=custom exits.taps=[...] or exits=none")
        return attach(backbone, backbone.paper_exits)


class NoExits:
    """The plain network: one exit, the full network."""

    def __call__(self, backbone: Backbone) -> MultiExitNet:
        """Build the network with its last exit alone, E = 1."""
        return attach(backbone, ())


class CustomExits:
    """Any taps with any heads.

    taps: the blocks that exits follow, by their 0-based numbers; of a network of a library, also by the name of a
        module, which stands for its last block.
    heads: one factory for all taps, or one per tap.
    Raises UserError when the two lists do not match.
    """

    def __init__(self, *, taps: Sequence[int | str], heads: Sequence[HeadFactory]) -> None:
        self.taps = [tap if isinstance(tap, str) else integer("exits.taps", tap, 0) for tap in taps]
        if len(heads) not in (1, len(self.taps)):
            raise UserError(
                f"exits.heads must list one head for all taps or one per tap: {len(heads)} heads, {len(self.taps)} taps"
            )
        self.heads = list(heads) * (len(self.taps) if len(heads) == 1 else 1)

    def __call__(self, backbone: Backbone) -> MultiExitNet:
        """Attach one exit per tap, E = len(taps) + 1."""
        taps = [tap_number(backbone, tap) for tap in self.taps]
        return attach(backbone, list(zip(taps, self.heads, strict=True)))
