"""The network under check: its deployed policy, and attacks on it as `rdi attack` makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from rdi.attacking import attack_split
from rdi.attacks import Attack, Average, ConfidentWrong, Soft
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.data import to_float
from rdi.data.base import Split
from rdi.evaluating import judge
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy

STREAM = "health"
"""One random stream for all attacks, so that two that differ in one setting start at the same points."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Thoroughness of the checks.

    steps: of the attacks.
    restarts, queries, draws: the most of them.
    large_eps: radius at which nothing may survive, pixel units.
    """

    steps: int
    restarts: int
    queries: int
    draws: int
    large_eps: float


@dataclass(frozen=True)
class Verdict:
    """Result of an attack on N images, under a policy.

    images: NCHW, as they were judged, on the CPU.
    right: bool_N, the policy's answer is the true class.
    """

    images: torch.Tensor
    right: torch.Tensor


@dataclass(kw_only=True)
class Evaluation:
    """A network with its policy, and the images and attacks to check them with.

    net: the network.
    policy: deterministic, with thresholds to differentiate through (Policy.thresholds).
    split: images and labels, on the network's device.
    static: an attack that does not know the policy.
    adaptive: attacks that know the policy; most checks vary adaptive[0].
    seed: of the attacks.
    batch_size: images per batch.
    engine: options of the crafting copy.
    history: every attack that has run, with its verdict.
    """

    net: MultiExitNet
    policy: Policy
    split: Split
    static: Average
    adaptive: Sequence[Soft | ConfidentWrong]
    seed: int
    batch_size: int
    engine: Engine = DEFAULT_ENGINE
    history: list[tuple[Attack, Verdict]] = field(default_factory=list)
    _known: dict[str, Verdict] = field(default_factory=dict)

    @property
    def main(self) -> Soft:
        """The adaptive attack that most checks vary."""
        first = self.adaptive[0]
        assert isinstance(first, Soft), "the first adaptive attack runs every exit at every step"
        return first

    @property
    def clean(self) -> torch.Tensor:
        """x_NCHW in [0, 1] of the split itself, on the CPU."""
        return to_float(self.split.images[:]).cpu()

    def batches(self, images: torch.Tensor, size: int | None = None) -> Iterator[torch.Tensor]:
        """Yield images on the network's device. size: of a batch, None: batch_size."""
        return (part.to(self.split.labels.device) for part in images.split(size or self.batch_size))

    def under(self, attack: Attack | None) -> Verdict:
        """Judge the policy under `attack` (None: clean); an attack that has run already is not run again."""
        bound = None if attack is None else attack.for_policy(self.policy)
        key = json.dumps(None if bound is None else bound.identity())
        if key not in self._known:
            self._known[key] = self.verdict(self.net, self.policy, self.split, bound, self.engine)
            if bound is not None:
                self.history.append((bound, self._known[key]))
        return self._known[key]

    def verdict(
        self,
        net: MultiExitNet,
        policy: Policy,
        split: Split,
        attack: Attack | None,
        engine: Engine,
        see: Callable[[torch.Tensor], None] = lambda x: None,
    ) -> Verdict:
        """Judge as `under` does, for any network, policy, images and engine, and never from memory.

        see: given every batch's x_adv.
        """
        images, logits = [], []
        batches = attack_split(
            net, split, attack, seed=self.seed, batch_size=self.batch_size, label=STREAM, engine=engine
        )
        for done in batches:
            see(done.images)
            images.append(done.images.cpu())
            logits.append(done.logits)
        return Verdict(torch.cat(images), judge(torch.cat(logits), split.labels.cpu(), policy).correct)

    def adaptive_worst(self) -> torch.Tensor:
        """Return right_N under every adaptive attack."""
        return torch.stack([self.under(attack).right for attack in self.adaptive]).all(dim=0)


def with_eps(attack: Average | Soft, eps: float) -> Average | Soft:
    """Return the attack in another ball, with steps that can cross it.

    eps: radius, pixel units; the step becomes at least 2.5 * eps / steps.
    Source: Madry et al., ICLR 2018.
    """
    assert attack.step_size is not None, "the attacks of the checks step along the sign"
    step = min(max(attack.step_size, 2.5 * eps / attack.steps), eps)
    return replace(attack, eps=eps, step_size=step)


def percent(right_N: torch.Tensor) -> str:
    """Format the share of True values, in percent with one decimal."""
    return f"{100 * float(right_N.double().mean()):.1f}"
