"""Attack and evaluate a network on plain tensors, as `rdi attack` and `rdi evaluate` do, without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdi import evaluating, macs
from rdi.attacks.base import Attack, check_batch, crafting
from rdi.attacks.norms import Ball
from rdi.banks import check_logits, joined_skipped
from rdi.checks import flag, instance, integer
from rdi.data.batches import to_float
from rdi.errors import UserError
from rdi.evaluation import Evaluation, Row
from rdi.exits.net import MultiExitNet, checked, fitting
from rdi.records import Costs
from rdi.seeds import generator
from rdi.text import snake_case
from rdi.threats import CLEAN, ThreatModel
from rdi.thresholds import Calibration, Policy, Rule
from rdi.thresholds.policy import checked_policy

Attacks = Attack | Sequence[Attack] | Mapping[str, Attack]
"""An attack, several, or several by name: a suite."""


@dataclass(frozen=True)
class Crafted:
    """Images and logits that an attack made of N images.

    images: (N, C, H, W), float, in [0, 1], on the device of the given ones.
    logits: (N, exits, C), float32, on the CPU: the network's own.
    ball: that the attack stayed in.
    linf: largest perturbation that was made, pixel units.
    skipped: (N, exits), int64, MACs that gates left out up to each exit; None of a network without gates.
    """

    images: torch.Tensor
    logits: torch.Tensor
    ball: Ball
    linf: float
    skipped: torch.Tensor | None = None


def attack(
    model: MultiExitNet,
    attacks: Attacks,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    policy: Policy | None = None,
    batch_size: int = 250,
    seed: int = 0,
    fast: bool = True,
) -> dict[str, Crafted]:
    """Attack images, batch by batch, and give for each attack the images and the logits of all exits.

    model: a MultiExitNet, as from `load` and `as_multi_exit`; left unchanged.
    attacks: one, several (named after their classes), or a mapping from names. SingleExit(exit="each") is one per exit.
    images: (N, C, H, W), float in [0, 1] or uint8, on any device.
    labels: (N,), int64, on any device.
    policy: the deployed policy, which some attacks aim at.
    batch_size: images per batch.
    seed: of the random starts; results depend on it and on batch_size.
    fast: craft on a copy of the model made for speed (BatchNorm folded, channels-last); False: on the model itself.
    Raises UserError for inputs outside the contract.
    """
    check_inputs(model, images, labels, policy, batch_size)
    seed, fast = integer("seed", seed, 0), flag("fast", fast)
    found = {}
    for name, one in _named(attacks, model.exits, policy).items():
        crafted, parts, linf = [], [], 0.0
        for begin, x, y in batches(model, images, labels, batch_size):
            x_adv = one(model, x, y, generator(x.device, seed, "attack", name, begin), fast=fast)
            linf = max(linf, float((x_adv - x).abs().max()))
            crafted.append(x_adv.to(images.device))
            parts.append(_judged(model, x_adv, name))
        logits, skipped = _joined(parts)
        found[name] = Crafted(torch.cat(crafted), logits, one.ball, linf, skipped)
    return found


def evaluate(
    model: MultiExitNet,
    images: torch.Tensor,
    labels: torch.Tensor,
    policy: Policy,
    attacks: Attacks = (),
    *,
    batch_size: int = 250,
    seed: int = 0,
    fast: bool = True,
) -> Evaluation:
    """Evaluate a network with its exit policy on clean images and under attacks.

    model, images, labels, attacks, batch_size, seed, fast: as of `attack`.
    policy: an exit policy, as from `load_thresholds` or `calibrate`, or
        thresholds.ThresholdPolicy(thresholds.Confidence(), [0.9, 0.9]).
    Raises UserError for inputs outside the contract.
    """
    checked_policy(policy, checked(model).exits)
    check_inputs(model, images, labels, policy, batch_size)
    costs, truth = network_costs(model, images), labels.cpu()
    crafted = attack(model, attacks, images, labels, policy=policy, batch_size=batch_size, seed=seed, fast=fast)
    rows, outcomes = [], {}
    threats = {name: ThreatModel(one.ball.eps, one.ball.norm) for name, one in crafted.items()}
    banks: dict[str, tuple[ThreatModel | None, torch.Tensor, torch.Tensor | None]] = {}
    banks[CLEAN] = (None, *clean_judged(model, images, labels, batch_size))
    banks |= {name: (threats[name], one.logits, one.skipped) for name, one in crafted.items()}
    for name, (threat, logits, skipped) in banks.items():
        outcomes[name] = evaluating.judge(logits, truth, policy, skipped)
        facts = evaluating.summarise(outcomes[name], costs)
        rows.append(
            Row(
                attack=name,
                eps=threat.eps if threat else None,
                norm=threat.norm if threat else None,
                samples=len(truth),
                accuracy=facts.accuracy,
                accuracy_low=facts.accuracy_low,
                accuracy_high=facts.accuracy_high,
                exit_accuracy=outcomes[name].exit_accuracy,
                exit_share=facts.exit_share,
                mean_macs=facts.mean_macs,
                saving=facts.saving,
            )
        )
    for threat in sorted(set(threats.values())):
        same = [outcomes[name] for name, own in threats.items() if own == threat]
        right = evaluating.worst_case(same)
        low, high = evaluating.interval(right)
        accuracy = float(right.double().mean())
        rows.append(Row(f"worst of {len(same)}", threat.eps, threat.norm, len(truth), accuracy, low, high))
    return Evaluation(tuple(rows))


def calibrate(
    model: MultiExitNet, rule: Rule, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 250
) -> Policy:
    """Fit an exit policy on clean calibration images, which no result should be reported on.

    model, images, labels, batch_size: as of `attack`.
    rule: of rdi.thresholds, as ShareRule(score=Entropy()).
    Raises UserError for a rule that does not fit the network, or that needs attacked images.
    """
    check_inputs(model, images, labels, None, batch_size)
    instance("rule", rule, Rule, "rdi.thresholds.ShareRule(score=rdi.thresholds.Entropy())")  # type: ignore[type-abstract]
    costs = network_costs(model, images)
    logits, skipped = clean_judged(model, images, labels, batch_size)
    rule.check(model.exits, costs)
    return rule.fit(Calibration(logits, labels.cpu(), costs, skipped=skipped))


def clean_judged(
    model: MultiExitNet, images: torch.Tensor, labels: torch.Tensor, batch_size: int = 250
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the logits of all exits on unattacked images, (N, exits, C), float32, and what gates skipped.

    model, images, labels, batch_size: as of `attack`.
    Returns both on the CPU; see MultiExitNet.judged.
    """
    return _joined([_judged(model, x, CLEAN) for _, x, _ in batches(model, images, labels, batch_size)])


def check_inputs(
    model: MultiExitNet, images: torch.Tensor, labels: torch.Tensor, policy: Policy | None, batch_size: int
) -> None:
    """Raise UserError for inputs outside the contract of `attack`."""
    exits = checked(model).exits
    integer("batch_size", batch_size, 1)
    check_batch(to_float(images) if _is_bytes(images) else images, labels)
    if not len(images):
        raise UserError("there are no images to judge")
    if policy is not None:
        checked_policy(policy, exits)
    with fitting(images.shape[1:]):
        classes = _judged(model, next(batches(model, images, labels, 1))[1], CLEAN)[0].shape[2]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"labels must be in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")


def _is_bytes(images: Any) -> bool:
    return isinstance(images, torch.Tensor) and images.dtype is torch.uint8


def batches(model: MultiExitNet, images: torch.Tensor, labels: torch.Tensor, size: int) -> Any:
    """Yield (first sample, x, y) on the model's device, in its precision."""
    like = next(model.parameters(), torch.empty(0))
    for begin in range(0, len(images), size):
        x, y = images[begin : begin + size].to(like.device), labels[begin : begin + size].to(like.device)
        yield begin, to_float(x).to(like.dtype) if _is_bytes(x) else x.to(like.dtype), y


def _judged(model: MultiExitNet, x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    with crafting(model), torch.no_grad():
        found, skipped = model.judged(x)
    logits = found.float().cpu()
    check_logits(logits, name)
    return logits, None if skipped is None else skipped.cpu()


def _joined(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.cat([one for one, _ in parts]), joined_skipped([one for _, one in parts])


def network_costs(model: MultiExitNet, images: torch.Tensor) -> Costs:
    """Count the MACs of a network for one of the images. Raises UserError where they cannot be counted."""
    try:
        return macs.count(model, tuple(images.shape[1:]))
    except RuntimeError as error:
        raise UserError(f"the MACs of this network cannot be counted: {str(error).strip().splitlines()[0]}") from error


def _named(attacks: Attacks, exits: int, policy: Policy | None) -> dict[str, Attack]:
    """Name the attacks, and aim them at the policy, those on each exit one by one. Raises UserError for others."""
    if isinstance(attacks, Attack):
        attacks = [attacks]
    if not isinstance(attacks, Mapping):
        if isinstance(attacks, str) or not isinstance(attacks, Sequence):
            raise UserError(f"attacks must be an Attack, a list, or a mapping from names to attacks, got {attacks!r}")
        by_name: dict[str, Attack] = {}
        for one in attacks:
            name = snake_case(type(one).__name__)
            same = sum(found.partition("#")[0] == name for found in by_name)
            by_name[f"{name}#{same + 1}" if same else name] = one
        attacks = by_name
    found: dict[str, Attack] = {}
    for name, one in attacks.items():
        if not isinstance(name, str) or not name:
            raise UserError(f"attacks are called by text, got {name!r}")
        instance(name, one, Attack, "rdi.attacks.MaxAverage(eps=8/255, step_size=2/255, steps=20)")  # type: ignore[type-abstract]
        aimed = one if policy is None else one.for_policy(policy)
        found |= {aimed.label(name) + suffix: each for suffix, each in aimed.per_exit(exits).items()}
    if CLEAN in found:
        raise UserError(f"no attack may be called {CLEAN!r}: that is the row without one")
    return found
