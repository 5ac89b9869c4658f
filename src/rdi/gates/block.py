"""A residual block behind a gate: whether it runs for an image, and with which channels of its first convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rdi.backbones.resnet import BasicBlock
from rdi.exits.compact import take


class _StraightThrough(torch.autograd.Function):
    """1 where a logit is positive, else 0; backward as the sigmoid of the logit."""

    @staticmethod
    def forward(ctx: Any, logit: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logit)
        return (logit > 0).to(logit.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        share = ctx.saved_tensors[0].sigmoid()
        return grad * share * (1 - share)


def bits(logit: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where sigmoid(logit) > 0.5, else 0.0; the gradient is that of the sigmoid (straight-through)."""
    if not torch.is_grad_enabled():
        return (logit > 0).to(logit.dtype)
    found: torch.Tensor = _StraightThrough.apply(logit)
    return found


class Controller(nn.Module):
    """The LSTM that all gates of a network share, and the linear layer that makes the bit of a block of its state.

    width: of the LSTM's input and state.
    Source: Wang et al., ECCV 2018 (SkipNet), section 3.1, recurrent gates.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.cell = nn.LSTMCell(width, width)
        self.run = nn.Linear(width, 1)
        # gates that begin open leave a network that they are put on as it was
        nn.init.ones_(self.run.bias)

    def forward(self, embedded_NW: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return the next state_N(2W), hidden and cell state, of the present one."""
        return torch.cat(self.cell(embedded_NW, (state[:, : self.width], state[:, self.width :])), dim=1)


class GatedBlock(nn.Module):
    """A basic block that an image passes by its shortcut alone where the gate says so.

    block: the block; its shortcut always runs.
    inputs: channels of its input.
    positions: of its output, height times width.
    width: of the controller.
    channels: whether each channel of the first convolution has a bit, too.
    """

    def __init__(self, block: BasicBlock, inputs: int, positions: int, width: int, channels: bool) -> None:
        super().__init__()
        self.block = block
        self.embed = nn.Linear(inputs, width)
        self.select = nn.Linear(width, block.conv1.out_channels) if channels else None
        if self.select is not None:
            nn.init.ones_(self.select.bias)
        self.outputs = block.conv1.out_channels
        whole = block.conv1.weight.numel() + block.conv2.weight.numel()
        self.unit = whole * positions // self.outputs
        """MACs of one channel of the first convolution, in both convolutions."""

    def gate_macs(self, controller: Controller) -> int:
        """Return the MACs of the gate, for one image."""
        layers = [self.embed, controller.run] + ([] if self.select is None else [self.select])
        cell = controller.cell.weight_ih.numel() + controller.cell.weight_hh.numel()
        return cell + sum(layer.weight.numel() for layer in layers)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor, controller: Controller, skip: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (features_NCHW, state, count_N1): how many channels of the first convolution each image runs.

        x: features_NCHW before the block.
        skip: leave the work out (no graph), instead of computing it and multiplying by the bits.
        """
        state = controller(self.embed(x.mean(dim=(2, 3))), state)
        hidden = state[:, : controller.width]
        run = bits(controller.run(hidden))
        channels = None if self.select is None else bits(self.select(hidden))
        count = run * (self.outputs if channels is None else channels.sum(dim=1, keepdim=True))
        out = self.skipped(x, run, channels) if skip else self.masked(x, run, channels)
        return out, state, count

    def masked(self, x: torch.Tensor, run: torch.Tensor, channels: torch.Tensor | None) -> torch.Tensor:
        """Compute everything for all images, and multiply by the bits."""
        block = self.block
        shortcut = block.shortcut(x)
        inner = F.relu(block.bn1(block.conv1(x)))
        if channels is not None:
            inner = inner * channels[:, :, None, None]
        out = F.relu(block.bn2(block.conv2(inner)) + shortcut)
        run = run[:, :, None, None]
        return out * run + shortcut * (1 - run)

    def skipped(self, x: torch.Tensor, run: torch.Tensor, channels: torch.Tensor | None) -> torch.Tensor:
        """Compute the block for the images whose bit is 1, and of these only the channels whose bits are 1."""
        shortcut: torch.Tensor = self.block.shortcut(x)
        rows = run[:, 0].nonzero()[:, 0]
        if len(rows) == 0:
            return shortcut
        complete = len(rows) == len(x)
        part = x if complete else take(x, rows)
        beside = shortcut if complete else take(shortcut, rows)
        if channels is None:
            inner = F.relu(self.block.bn1(self.block.conv1(part)))
            residual = self.block.bn2(self.block.conv2(inner))
        else:
            residual = self._by_pattern(part, channels[rows] > 0, beside)
        out = F.relu(residual + beside)
        return out if complete else shortcut.index_copy(0, rows, out)

    def _by_pattern(self, x: torch.Tensor, channels_NC: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the residuals, images with the same channels together. like: of their shape."""
        patterns, which = channels_NC.unique(dim=0, return_inverse=True)
        found = torch.empty_like(like)
        for number, pattern in enumerate(patterns):
            rows = (which == number).nonzero()[:, 0]
            found.index_copy_(0, rows, self._narrow(take(x, rows), pattern.nonzero()[:, 0], like))
        return found

    def _narrow(self, x: torch.Tensor, kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the residual of images that run the same channels `kept` of the first convolution."""
        block = self.block
        second = block.conv2
        if len(kept) == 0:
            zeros = like.new_zeros(len(x), *like.shape[1:])
            left: torch.Tensor = block.bn2(zeros if second.bias is None else zeros + second.bias[:, None, None])
            return left
        first, norm = block.conv1, block.bn1
        inner = F.conv2d(x, first.weight[kept], _some(first.bias, kept), first.stride, first.padding)
        if isinstance(norm, nn.BatchNorm2d):  # a copy for crafting has it folded into the convolution
            statistics = (_some(norm.running_mean, kept), _some(norm.running_var, kept))
            inner = F.batch_norm(
                inner, *statistics, _some(norm.weight, kept), _some(norm.bias, kept), False, 0, norm.eps
            )
        out = F.conv2d(F.relu(inner), second.weight[:, kept], second.bias, second.stride, second.padding)
        found: torch.Tensor = block.bn2(out)
        return found


def _some(values: torch.Tensor | None, kept: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[kept]
