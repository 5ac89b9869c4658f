"""Checks of gates: what they are counted to leave out is left out, and an attack can open them."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from rdi import macs
from rdi.attacks import Slowdown, crafting
from rdi.evaluating import judge
from rdi.health.evaluation import Evaluation
from rdi.health.gradients import ALLOWED, no_gradient
from rdi.health.paired import above
from rdi.health.strength import Noise
from rdi.records import Check

IMAGES = 8
"""Images that are run one by one with a counter."""
ROUNDING = 0.01
"""Share of the MACs by which Slowdown may end below its random start: its copy of the network rounds otherwise."""


def gates(evaluation: Evaluation) -> list[Check]:
    """Run both checks on a network with gates; without gates there is nothing to check."""
    return [gate_costs(evaluation), gate_gradients(evaluation)] if evaluation.net.gated else []


def gate_costs(evaluation: Evaluation) -> Check:
    """Compare the multiply-adds that torch runs, image by image, with those that are counted."""
    net, ran, counted = evaluation.net, [], []
    whole = _per_exit(evaluation)[-1]
    for x in evaluation.batches(evaluation.clean[:IMAGES], 1):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            _, skipped = net.judged(x)
        assert skipped is not None, "of a network with gates"
        ran.append(counter.get_total_flops() // 2)
        counted.append(whole - int(skipped[0, -1]))
    wrong = sum(one != other for one, other in zip(ran, counted, strict=True))
    return Check(
        name="gates, costs",
        passed=not wrong,
        figure=f"{wrong} of {len(ran)} images ran other multiply-adds than are counted: "
        f"{100 * min(ran) / whole:.1f} to {100 * max(ran) / whole:.1f} % of those with open gates ran, "
        f"{100 * min(counted) / whole:.1f} to {100 * max(counted) / whole:.1f} % are counted",
        meaning="Blocks or channels that count as skipped are computed, or the reverse: the cost printed is not what "
        "runs.",
    )


def gate_gradients(evaluation: Evaluation) -> Check:
    """Check that the cost has a gradient at the images, and that slowdown ends no cheaper than noise."""
    main = evaluation.main
    noise = Noise(eps=main.eps, norm=main.norm)
    slow = Slowdown(eps=main.eps, norm=main.norm, step_size=main.step_size, steps=main.steps)
    shares = [_cost(evaluation, evaluation.clean)]
    shares += [_cost(evaluation, evaluation.under(attack).images) for attack in (noise, slow)]
    without = torch.cat([_without_gradient(evaluation, x) for x in evaluation.batches(evaluation.clean)])
    return Check(
        name="gates, gradients",
        passed=not above(int(without.sum()), len(without), ALLOWED) and shares[2] >= shares[1] - ROUNDING,
        figure=f"{int(without.sum())} of {len(without)} images without a gradient of their cost "
        f"(allowed {100 * ALLOWED:g} % and chance); MACs clean {100 * shares[0]:.1f}, under noise "
        f"{100 * shares[1]:.1f}, under slowdown {100 * shares[2]:.1f} % of those with open gates",
        meaning="Attacks have nothing to follow through the gates, or do not follow it: the cost under slowdown, and "
        "the accuracy where gates decide, are those of a weaker attacker.",
    )


def _per_exit(evaluation: Evaluation) -> tuple[int, ...]:
    """MACs to each exit with all gates open."""
    return macs.count(evaluation.net, evaluation.clean.shape[1:], warn=False).macs


@torch.inference_mode()
def _cost(evaluation: Evaluation, images: torch.Tensor) -> float:
    """Mean MACs under the policy, as a share of those to the last exit with all gates open."""
    per_exit = _per_exit(evaluation)
    spent = []
    for x in evaluation.batches(images):
        logits, skipped = evaluation.net.judged(x)
        labels = torch.zeros(len(x), dtype=torch.long)
        found = judge(logits.float().cpu(), labels, evaluation.policy, None if skipped is None else skipped.cpu())
        spent.append(found.macs(per_exit))
    return float(torch.cat(spent).mean()) / per_exit[-1]


def _without_gradient(evaluation: Evaluation, x: torch.Tensor) -> torch.Tensor:
    """Return bool_N: the cost of the whole network has no usable gradient at that image."""
    net = evaluation.net
    with torch.enable_grad(), crafting(net):
        x = x.detach().requires_grad_(True)
        rows = x
        for stage in net.stages:
            rows = stage(rows)
        cost = net.cost(rows, net.exits - 1)
        assert cost is not None, "of a network with gates"
        return no_gradient(cost.sum(), x)
