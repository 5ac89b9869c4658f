"""A training loss put together from terms: what is crafted, which losses on it, how exits are weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.defenses.base import Defense, Logs, accuracy_per_exit
from rdi.defenses.one_step import OneStep
from rdi.defenses.terms import ADVERSARIAL, CLEAN, Pair, Term
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet


class Composed(Defense):
    """Mean over exits of the weighted sum of `terms`.

    attack: judges the held-out images; its eps is that of the training, too.
    terms: at least one Term.
    crafting: OneStep, or None: `attack` itself crafts the training images.
    exit_weights: E numbers >= 0, not all 0; scaled to sum 1. None: equal.
    engine: makes the copy of the network that images are crafted on; None: they are crafted on the network itself.

    Clean and adversarial images pass the network as one batch, so BatchNorm sees their joint statistics.
    Raises UserError for values out of range.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        terms: Sequence[Term],
        crafting: OneStep | None = None,
        exit_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(exit_weights=exit_weights, engine=engine)
        if not terms or not all(isinstance(term, Term) for term in terms):
            raise UserError("defense.terms must list at least one term, as rdi.defenses.CrossEntropy")
        if crafting is not None and not isinstance(crafting, OneStep):
            raise UserError(f"defense.crafting must be rdi.defenses.OneStep or null, got {crafting!r}")
        self.attack: Attack = attack
        self.terms = list(terms)
        self.crafting = crafting
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return the number of losses so far."""
        return {"step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as the defense whose `state` this is. Raises ValueError for the state of another defense."""
        if state and set(state) != {"step"}:
            raise ValueError(f"Composed has no state {sorted(state)}")
        self.step = int(state.get("step", 0))

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the batch that the network is trained on: clean images, then adversarial ones, as terms need."""
        needs = self.needs
        parts = [x] if CLEAN in needs else []
        if ADVERSARIAL in needs:
            parts.append(self.adversarial(model, x, y, generator))
        return torch.cat(parts).contiguous(memory_format=memory_format(x))

    @property
    def needs(self) -> frozenset[str]:
        """Which logits any term reads."""
        return frozenset().union(*(term.needs for term in self.terms))

    def adversarial(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Craft the adversarial part of the batch, x_adv_NCHW in [0, 1]."""
        if self.crafting is None:
            return self.craft(self.attack, model, x, y, generator)
        with self.crafting_network(model) as net, torch.autocast(x.device.type, enabled=False):
            images = x if self.engine is None else x.to(memory_format=self.engine.memory_format)
            return self.crafting(net, images, y, self.attack.eps, self.step, generator)

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return (scalar loss with graph, logs)."""
        needs, samples = self.needs, len(x)
        logits = model(self.images(model, x, y, generator)).float()
        pair = Pair(
            clean=logits[:samples] if CLEAN in needs else None,
            adversarial=logits[-samples:] if ADVERSARIAL in needs else None,
            y=y,
        )
        progress = self.step / self.steps
        weights_E = self.weights(logits)
        total = logits.new_zeros(())
        logs: Logs = {}
        for term in self.terms:
            value = (weights_E * term(pair)).sum()
            logs[term.label] = value.detach()
            total = total + term.weight_at(progress) * value
        logs["loss"] = total.detach()
        for name, part in (("clean_accuracy", pair.clean), ("robust_accuracy", pair.adversarial)):
            if part is not None:
                logs[name] = accuracy_per_exit(part, y)
        self.step += 1
        return total, logs

    def weights(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return the weights_E of the exits, of sum 1. Raises UserError for a wrong number of weights."""
        weights = self.checked_weights(logits_NEC.shape[1])
        total = sum(weights)
        if not total > 0:
            raise UserError("defense.exit_weights must not be all 0")
        return logits_NEC.new_tensor([weight / total for weight in weights])


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return the memory format that x_NCHW is stored in."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
