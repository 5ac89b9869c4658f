"""A multi-exit network whose blocks have gates: what an image costs is its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdi.backbones.resnet import BasicBlock
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet, Normalise
from rdi.gates.block import Controller, GatedBlock


class GatedStage(nn.Module):
    """Blocks of a stage, some behind gates.

    What goes from stage to stage is one row per image, so that images are taken out of a batch as of any network:
    features, the LSTM's state, and for every gated block so far the channels that ran.

    blocks: modules in their order; the gated ones are GatedBlocks.
    controller: shared by all stages.
    shape: CHW of the features before the stage; None: it takes images.
    before: gated blocks in the stages before it.
    """

    def __init__(
        self, blocks: Iterable[nn.Module], controller: Controller, shape: tuple[int, ...] | None, before: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.controller = controller
        self.shape, self.before = shape, before
        self.skips = True

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Map x_NCHW, or what the stage before returned, to rows_ND."""
        if self.shape is None:
            x, counts = given, []
            state = given.new_zeros(len(given), 2 * self.controller.width)
        else:
            x = features(given, self.shape)
            sizes = [math.prod(self.shape), 2 * self.controller.width, self.before]
            _, state, done = given.split(sizes, dim=1)
            counts = [done]
        skip = self.skips and not self.training and not torch.is_grad_enabled()
        for block in self.blocks:
            if isinstance(block, GatedBlock):
                x, state, count = block(x, state, self.controller, skip)
                counts.append(count)
            else:
                x = block(x)
        return torch.cat([x.flatten(1), state, *counts], dim=1)


class GatedHead(nn.Module):
    """A head on the features in the rows that a GatedStage returns. shape: CHW of the features."""

    def __init__(self, head: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.shape = head, shape

    def forward(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Compute logits_NC."""
        logits: torch.Tensor = self.head(features(rows_ND, self.shape))
        return logits


def features(rows_ND: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the features_NCHW that rows begin with."""
    return rows_ND[:, : math.prod(shape)].unflatten(1, shape)


class _Passes(list[torch.Tensor]):
    """Passes of one network: a copy of it, as attacks make, begins with none, and tensors with graph have no copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Passes:
        return _Passes()


class GatedNet(MultiExitNet):
    """A multi-exit network with gates; made by `gated`.

    Without graph and in eval mode what gates leave out is not computed; else it is, and multiplied by 0, so that
    gradients reach the gates (straight-through).

    macs: per exit, of an image whose gates are all open.
    macs_plain: of the network without early exits and gates.
    """

    def __init__(
        self, stages: Sequence[GatedStage], heads: Iterable[GatedHead], macs: Sequence[int], macs_plain: int
    ) -> None:
        super().__init__(stages, heads)
        gates = [[one for one in stage.blocks if isinstance(one, GatedBlock)] for stage in stages]
        self.units = tuple(block.unit for stage in gates for block in stage)
        self.channels = tuple(block.outputs for stage in gates for block in stage)
        self.upto = tuple(sum(len(one) for one in gates[: k + 1]) for k in range(len(gates)))
        self._watched: _Passes | None = None
        self.macs, self.macs_plain = tuple(macs), macs_plain
        self.gate_macs = sum(block.gate_macs(stages[0].controller) for stage in gates for block in stage)

    @property
    def gated(self) -> bool:
        """True: gates decide per image what is computed."""
        return True

    @property
    def whole(self) -> tuple[int, ...]:
        """MACs of every gated block."""
        return tuple(unit * channels for unit, channels in zip(self.units, self.channels, strict=True))

    def executed(self, saved: torch.Tensor) -> torch.Tensor:
        """Return the share of the MACs of the network without exits and gates that is executed, the gates counted.

        saved: MACs that the gates left out up to the last exit.
        """
        return 1 + (self.gate_macs - saved) / self.macs_plain

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that compute anything apart from the gates, by name."""
        found: dict[str, nn.Module] = {}
        for name, module in self.named_modules():
            if isinstance(module, GatedStage):
                for j, block in enumerate(module.blocks):
                    inner, suffix = (block.block, ".block") if isinstance(block, GatedBlock) else (block, "")
                    found[f"{name}.blocks.{j}{suffix}"] = inner
            elif isinstance(module, GatedHead):
                found[f"{name}.head"] = module.head
        return found

    def plain(self) -> MultiExitNet:
        """Return the network without its gates, which shares all modules with it."""
        stages = []
        for stage in self.stages:
            assert isinstance(stage, GatedStage), "a crafting copy is made of a network, not asked for its parts"
            blocks = [block.block if isinstance(block, GatedBlock) else block for block in stage.blocks]
            if isinstance(blocks[0], Normalise):
                blocks = [blocks[0], nn.Sequential(*blocks[1:])]
            stages.append(nn.Sequential(*blocks))
        heads = [head.head for head in self.heads if isinstance(head, GatedHead)]
        return MultiExitNet(stages, heads).train(self.training)

    def gate_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the gates."""
        backbone = {id(one) for one in self.plain().parameters()}
        return [one for one in self.parameters() if id(one) not in backbone]

    def skipping(self, wanted: bool) -> None:
        """Leave out, where there is no graph, what gates skip, or compute it all the same."""
        for module in self.modules():
            if isinstance(module, GatedStage):
                module.skips = wanted

    def logits_at(self, x: torch.Tensor, exits: Iterable[int]) -> torch.Tensor:
        """Compute logits_NKC as of any network; inside `watched` the executed channels are kept, too."""
        wanted = sorted(set(exits))
        logits, rows = [], x
        for index in range(wanted[-1] + 1):
            rows = self.stages[index](rows)
            if index in wanted:
                logits.append(self.heads[index](rows))
        if self._watched is not None and self.training and wanted[-1] == self.exits - 1:
            self._watched.append(self.saved(rows, self.exits - 1))
        return torch.stack(logits, dim=1)

    def judged(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute (logits_NEC, skipped_NE): as int64, the MACs that gates left out up to each exit."""
        logits, skipped, rows = [], [], x
        for k, (stage, head) in enumerate(zip(self.stages, self.heads, strict=True)):
            rows = stage(rows)
            logits.append(head(rows))
            skipped.append(self.skipped(rows, k))
        return torch.stack(logits, dim=1), torch.stack([one for one in skipped if one is not None], dim=1)

    def skipped(self, features: torch.Tensor, exit: int) -> torch.Tensor | None:
        """Return the MACs that gates left out up to an exit, int64_N, of what its stage returned."""
        units, left = self._left(features, exit)
        return (left.round().long() * torch.tensor(units, dtype=torch.long, device=left.device)).sum(dim=1)

    def saved(self, rows_ND: torch.Tensor, exit: int) -> torch.Tensor:
        """Return the MACs that gates left out up to an exit, float_N, with straight-through gradient."""
        units, left = self._left(rows_ND, exit)
        return (left.float() * torch.tensor(units, dtype=torch.float, device=left.device)).sum(dim=1)

    def cost(self, features: torch.Tensor, exit: int) -> torch.Tensor:
        """Return the MACs that an image costs up to an exit, float_N with straight-through gradient.

        As a share of what the last exit costs where all gates are open. features: what the stage of that exit returned.
        """
        return (self.macs[exit] - self.saved(features, exit)) / self.macs[-1]

    def _left(self, rows_ND: torch.Tensor, exit: int) -> tuple[tuple[int, ...], torch.Tensor]:
        """Return the units of the gated blocks up to an exit, and left_NB: how many channels did not run."""
        gates = self.upto[exit]
        whole = rows_ND.new_tensor(self.channels[:gates])
        return self.units[:gates], whole - rows_ND[:, rows_ND.shape[1] - gates :]

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """Collect `saved` of the last exit, float_N with graph, of every training pass inside."""
        self._watched = _Passes()
        try:
            yield self._watched
        finally:
            self._watched = None


def gated(net: MultiExitNet, shape: Sequence[int], *, channels: bool, width: int) -> GatedNet:
    """Put gates on all residual blocks of `net` but the first, which always runs.

    net: its blocks are residual ones behind a stem; they become part of the new network.
    shape: CHW of an image.
    channels: whether each channel of a block's first convolution has a bit, too.
    width: of the LSTM.
    Raises UserError for another network.
    """
    stages = [list(_flat(stage)) for stage in net.stages]
    residual = [block for stage in stages for block in stage if isinstance(block, BasicBlock)]
    others = [block for stage in stages for block in stage if not isinstance(block, BasicBlock | Normalise)]
    if len(residual) < 2 or len(others) > 1:
        raise UserError(
            "gates=... are for ResNets: this network is no chain of residual blocks behind a stem; choose "
            "backbone=resnet38 or another ResNet, or gates=none"
        )
    controller = Controller(width)
    made, heads, gates = [], [], 0
    macs, plain, beside = [], 0, 0
    given: tuple[int, ...] | None = None
    x = torch.zeros(1, *shape)
    for stage, head in zip(stages, net.heads, strict=True):
        before, blocks = gates, []
        for block in stage:
            inputs = x.shape[1]
            x, cost = _run(block, x)
            plain += cost
            if isinstance(block, BasicBlock) and block is not residual[0]:
                block = GatedBlock(block, inputs, x.shape[2] * x.shape[3], width, channels)
                beside += block.gate_macs(controller)
                gates += 1
            blocks.append(block)
        made.append(GatedStage(blocks, controller, given, before))
        given = tuple(x.shape[1:])
        heads.append(GatedHead(head, given))
        cost = _run(head, x)[1]
        beside += cost
        macs.append(plain + beside)
    return GatedNet(made, heads, macs, plain + cost)


@torch.no_grad()
def _run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return what a module, left in its mode, makes of x in eval mode, and the MACs of that."""
    modes = [(one, one.training) for one in module.modules()]
    with FlopCounterMode(display=False) as counter:
        out = module.eval()(x)
    for one, mode in modes:
        one.training = mode
    return out, counter.get_total_flops() // 2


def _flat(stage: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a stage, those inside a normalised one as well."""
    children = list(stage.children())
    if children and isinstance(children[0], Normalise):
        yield children[0]
        yield from children[1].children()
    else:
        yield from children
