"""Cost of every exit in multiply-adds, counted by fvcore on the real modules (1 multiply-add = 1 MAC)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rdi.deprecations import hidden
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.exits.whole import ExitRange, WholeNet
from rdi.operators import CONVOLUTION, HANDLES, PRODUCT, is_free
from rdi.records import Costs

with hidden():
    from fvcore.nn.jit_analysis import JitModelAnalysis

logger = logging.getLogger("rdi")


def count(model: MultiExitNet, shape: Sequence[int], *, sparse: bool = False, warn: bool = True) -> Costs:
    """Count the MACs of a network for one image. The network is copied; its mode and statistics stay.

    model: a WholeNet, which can only be run as a whole, counts as if it stopped at each exit.
    shape: (C, H, W) of an image.
    sparse: count non-zero weights only, by the published rule (Hu et al., ICLR 2020); the honest rule counts all, which
        is what dense hardware executes.
    warn: of operators that cannot be counted, by name; their MACs are missing.
    """
    probe = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    probe.skipping(False)
    unknown: dict[str, list[str]] = {}
    if isinstance(probe, WholeNet):
        return _count_whole(probe, torch.zeros(1, *shape), unknown, sparse, warn)
    stages, heads = [], []
    with torch.no_grad(), _plain_attention():
        features = torch.zeros(1, *shape)
        # part by part: a module that two parts share is counted in both
        for k, (stage, head) in enumerate(zip(probe.stages, probe.heads, strict=True)):
            stages.append(_cost(stage, features, f"stages.{k}", unknown, sparse))
            features = stage(features)
            heads.append(_cost(head, features, f"heads.{k}", unknown, sparse))
    _warn(unknown if warn else {})
    macs, macs_paper = [], []
    run = run_paper = plain = 0
    for (stage_all, stage_paper), (head_all, head_paper) in zip(stages, heads, strict=True):
        plain += stage_all
        run += stage_all + head_all
        run_paper += stage_paper
        macs.append(run)
        macs_paper.append(run_paper + head_paper)
    without = model.plain()
    if without is not model:
        ungated = count(without, shape, sparse=sparse, warn=False)
        return replace(ungated, macs=tuple(macs), macs_paper=tuple(macs_paper))
    return _costs(macs, macs_paper, plain + heads[-1][0], macs_paper[-1])


def executed(model: MultiExitNet, shape: Sequence[int]) -> Costs:
    """Count the MACs that run until an image has left at each exit: as `count`, but all of a WholeNet at every one.

    shape: (C, H, W) of an image.
    """
    found = count(model, shape)
    return replace(found, macs=(found.macs[-1],) * model.exits) if isinstance(model, WholeNet) else found


def _count_whole(
    model: WholeNet, images: torch.Tensor, unknown: dict[str, list[str]], sparse: bool, warn: bool
) -> Costs:
    """Costs of a network that runs as a whole: of what the logits up to each exit depend on, as its trace says."""

    def between(first: int, last: int) -> tuple[int, int]:
        return _cost(ExitRange(model.whole, first, last), images, f"exit {last}", unknown, sparse)

    last = model.exits - 1
    with torch.no_grad(), _plain_attention():
        macs = [between(0, k)[0] for k in range(model.exits)]
        macs_paper = [between(k, k)[1] for k in range(model.exits)]
        plain = between(last, last)
    _warn(unknown if warn else {})
    if warn and last and macs[0] == macs[last]:
        logger.warning(
            "MACs: the network returns its exits so that each depends on all of it, and every exit is counted with "
            "the whole network: let it return a list of logits, which it does not stack"
        )
    return _costs(macs, macs_paper, *plain)


def _costs(macs: list[int], macs_paper: list[int], plain: int, plain_paper: int) -> Costs:
    return Costs(macs=tuple(macs), macs_paper=tuple(macs_paper), macs_plain=plain, macs_plain_paper=plain_paper)


def _warn(unknown: dict[str, list[str]]) -> None:
    for operator, parts in unknown.items():
        logger.warning(
            "MACs: %s in %s cannot be counted, so the MACs of this network are too few and savings are wrong: "
            "replace it, or write it with convolutions and matrix products",
            operator,
            ", ".join(dict.fromkeys(parts)),
        )


def _cost(part: nn.Module, features: Any, name: str, unknown: dict[str, list[str]], sparse: bool) -> tuple[int, int]:
    """MACs of one stage or head by the honest rule and by the published one; adds to `unknown` operators -> parts.

    Raises UserError for a module that was compiled, whose operators nobody sees.
    """
    for inner, module in part.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            path = f"{name}.{inner}".rstrip(".")
            raise UserError(f"MACs: {path} is compiled (torch.jit or torch.compile): give the plain module")
    analysis = JitModelAnalysis(part, features).set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    found = analysis.by_operator()
    for operator in analysis.unsupported_ops():
        if not is_free(operator):
            unknown.setdefault(operator, []).append(name)
    convolutions = int(found[CONVOLUTION])
    skipped = 0
    if sparse:
        by_module = analysis.by_module_and_operator()
        for inner, layer in part.named_modules():
            if isinstance(layer, nn.modules.conv._ConvNd):
                # every weight of a convolution is one multiply-add per output pixel
                zeros = int((layer.weight == 0).sum())
                skipped += int(by_module[inner][CONVOLUTION]) * zeros // layer.weight.numel()
    return convolutions + int(found[PRODUCT]), convolutions - skipped


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as its products, which can be counted, and not as the one fused operator of inference."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
