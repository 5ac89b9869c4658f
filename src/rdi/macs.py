"""Cost of every exit in multiply-adds, counted by fvcore on the real modules (1 multiply-add = 1 MAC)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from rdi.exits.net import MultiExitNet

PAPER_UNIT = 2**20
"""What the official code calls a million (PAPER.md section 3)."""


@dataclass(frozen=True)
class Costs:
    """MACs per sample, integers, one entry per exit.

    macs: all that a sequential run executes to leave there: stages, every head on the way, convolutions and linear.
    macs_paper: the published rule: stages and this exit's own head, convolutions only.
    macs_plain: the backbone without early exits, convolutions and linear: what a saving is measured against.
    macs_plain_paper: the same, convolutions only; equals the last entry of macs_paper.
    """

    macs: tuple[int, ...]
    macs_paper: tuple[int, ...]
    macs_plain: int
    macs_plain_paper: int


def count(model: MultiExitNet, shape: Sequence[int], *, sparse: bool = False) -> Costs:
    """Costs of `model` for one image of `shape` CHW. The model is copied; its mode and statistics stay.

    sparse: the published rule counts the non-zero weights of convolutions only (PAPER.md section 2.4). The honest one
    counts all: what dense hardware executes, zeros or not.
    """
    probe = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    analysis = FlopCountAnalysis(probe, torch.zeros(1, *shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module: dict[str, Any] = analysis.by_module_and_operator()

    def cost(module: str, operators: tuple[str, ...]) -> int:
        return int(sum(by_module[module][operator] for operator in operators))

    # every weight of a convolution is one multiply-add per output pixel
    skipped = {
        name: cost(name, ("conv",)) * int((layer.weight == 0).sum()) // layer.weight.numel()
        for name, layer in probe.named_modules()
        if sparse and isinstance(layer, nn.Conv2d)
    }

    def cost_paper(module: str) -> int:
        return cost(module, ("conv",)) - sum(n for name, n in skipped.items() if f"{name}.".startswith(f"{module}."))

    macs, macs_paper = [], []
    run = run_paper = plain = 0
    for k in range(model.exits):
        stage, head = f"stages.{k}", f"heads.{k}"
        run += cost(stage, ("conv", "linear")) + cost(head, ("conv", "linear"))
        run_paper += cost_paper(stage)
        plain += cost(stage, ("conv", "linear"))
        macs.append(run)
        macs_paper.append(run_paper + cost_paper(head))
    plain += cost(f"heads.{model.exits - 1}", ("conv", "linear"))
    return Costs(tuple(macs), tuple(macs_paper), plain, macs_paper[-1])
