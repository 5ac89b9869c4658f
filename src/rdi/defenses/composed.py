"""A training loss put together from terms: what is crafted, which losses on it, how exits are weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.attacks.simplex import MinMaxWeights
from rdi.defenses.base import Defense, Logs, accuracy_per_exit
from rdi.defenses.crafting import Crafting
from rdi.defenses.terms import ADVERSARIAL, CARRIED, CLEAN, Batch, Term
from rdi.defenses.weight_perturbation import WeightPerturbation
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

ORDER = (CLEAN, ADVERSARIAL, CARRIED)
"""Order of the images in the joint batch."""


class Composed(Defense):
    """Mean over exits of the weighted sum of `terms`.

    attack: judges the held-out images; its ball is that of the training, too.
    terms: at least one Term.
    crafting: makes the images that the network is trained on (GradientSign, Carried, Blind, or an Attack); None:
        `attack` does.
    exit_weights: E numbers >= 0, not all 0, scaled to sum 1; or MinMaxWeights, which follow the losses. None: equal.
    weight_perturbation: moves the weights while the loss is taken; None: it does not.
    engine: makes the copy of the network that images are crafted on; None: they are crafted on the network itself.

    All images of a step pass the network as one batch, so BatchNorm sees their joint statistics.
    Raises UserError for values out of range, and for terms on images that `crafting` does not give, and for a
    norm that it cannot.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        terms: Sequence[Term],
        crafting: Crafting | Attack | None = None,
        exit_weights: Sequence[float] | MinMaxWeights | None = None,
        weight_perturbation: WeightPerturbation | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.min_max = exit_weights if isinstance(exit_weights, MinMaxWeights) else None
        super().__init__(exit_weights=None if isinstance(exit_weights, MinMaxWeights) else exit_weights, engine=engine)
        self.exit_weights = self.min_max or self.exit_weights
        if isinstance(terms, str) or not terms or not all(isinstance(term, Term) for term in terms):
            raise UserError("defense.terms must list at least one term, as rdi.defenses.CrossEntropy")
        if crafting is not None and not isinstance(crafting, Crafting | Attack):
            raise UserError(
                "defense.crafting must be rdi.defenses.GradientSign, Carried or Blind, an attack as "
                f"rdi.attacks.Average or null: {crafting!r}"
            )
        if weight_perturbation is not None and not isinstance(weight_perturbation, WeightPerturbation):
            raise UserError(
                f"defense.weight_perturbation must be rdi.defenses.WeightPerturbation or null: {weight_perturbation!r}"
            )
        self.attack: Attack = attack
        self.terms = list(terms)
        self.crafting = crafting
        self.weight_perturbation = weight_perturbation
        self.step = 0
        self._weights: torch.Tensor | None = None
        if isinstance(crafting, Crafting):
            crafting.check(attack.ball)
        if CARRIED in self.needs and not (isinstance(crafting, Crafting) and CARRIED in crafting.gives):
            raise UserError("a term with reference=carried needs defense.crafting to be rdi.defenses.Carried")

    def state(self) -> dict[str, Any]:
        """Return what the next loss depends on apart from the network."""
        state: dict[str, Any] = {"step": self.step}
        if self._weights is not None:
            state["weights"] = self._weights
        if isinstance(self.crafting, Crafting) and (crafting := self.crafting.state()):
            state["crafting"] = crafting
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as the defense whose `state` this is. Raises ValueError for the state of another defense."""
        if state and not {"step"} <= set(state) <= {"step", "weights", "crafting"}:
            raise ValueError(f"Composed has no state {sorted(state)}")
        self.step = int(state.get("step", 0))
        self._weights = state.get("weights")
        if isinstance(self.crafting, Crafting):
            self.crafting.load_state(state.get("crafting", {}))

    @property
    def needs(self) -> frozenset[str]:
        """Names of the images whose logits any term reads."""
        return frozenset().union(*(term.needs for term in self.terms))

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the joint batch that the network is trained on, in ORDER, as terms need."""
        found = self.made(model, x, y, generator)
        joint = torch.cat([found[name] for name in ORDER if name in found])
        return joint.contiguous(memory_format=memory_format(x))

    def one_step(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Craft x_adv_NCHW of the one step; None where the attack crafts, or nothing is."""
        crafting = self.crafting.one_step() if isinstance(self.crafting, Crafting) else None
        if crafting is None or ADVERSARIAL not in self.needs:
            return None
        return self.made(model, x, y, generator, crafting)[ADVERSARIAL]

    def made(
        self,
        model: MultiExitNet,
        x: torch.Tensor,
        y: torch.Tensor,
        generator: torch.Generator,
        crafting: Crafting | Attack | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return images_NCHW by name, those that terms need.

        crafting: in place of the defense's own; None: its own.
        """
        crafting = crafting or self.crafting
        found = {CLEAN: x}
        if self.needs - {CLEAN}:
            if not isinstance(crafting, Crafting):
                found[ADVERSARIAL] = self.craft(crafting or self.attack, model, x, y, generator)
            else:
                with self.crafting_network(model) as net, torch.autocast(x.device.type, enabled=False):
                    images = x if self.engine is None else x.to(memory_format=self.engine.memory_format)
                    found |= crafting(net, images, y, self.attack.ball, generator, step=self.step, origin=self.origin)
        return {name: images for name, images in found.items() if name in self.needs}

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return (scalar loss with graph, logs)."""
        joint = self.images(model, x, y, generator)
        names = [name for name in ORDER if name in self.needs]
        progress = self.step / self.steps

        labels = self.gather(y)

        def batch() -> Batch:
            parts = model(joint).float().split(len(x))
            return Batch({name: self.gather(part) for name, part in zip(names, parts, strict=True)}, labels)

        if self.weight_perturbation is not None and progress >= self.weight_perturbation.start:
            self.weight_perturbation.perturb(
                model, lambda: self.total(batch(), progress)[0], self.share(len(x)).ranks.average
            )
        found = batch()
        total, logs = self.total(found, progress)
        for name, label in ((CLEAN, "clean_accuracy"), (ADVERSARIAL, "robust_accuracy")):
            if name in found.logits:
                logs[label] = accuracy_per_exit(found.logits[name], labels)
        logs["head_norm"] = head_norms(model)
        if self.min_max is not None:
            losses_E = self.parts.mean(logs.pop("exit_losses"), self.share(len(x)).total)
            logs["exit_weights"] = self.min_max.moved(self.weights(found), losses_E)
        if self.parts.over():
            self._weights = logs.get("exit_weights")
            self.step += 1
        return total, logs

    def total(self, batch: Batch, progress: float) -> tuple[torch.Tensor, Logs]:
        """Return the loss of a batch and its parts; progress: share of the training that is done."""
        weights_E = self.weights(batch)
        losses_E = torch.zeros_like(weights_E)
        logs: Logs = {}
        for term in self.terms:
            value_E = term(batch)
            value = (weights_E * value_E).sum().detach()
            logs[term.label] = logs[term.label] + value if term.label in logs else value
            losses_E = losses_E + term.weight_at(progress) * value_E
        total = (weights_E * losses_E).sum()
        if self.min_max is not None:
            logs["exit_losses"] = losses_E.detach()
        return total, {"loss": total.detach(), **logs}

    def weights(self, batch: Batch) -> torch.Tensor:
        """Return the weights_E of the exits, of sum 1. Raises UserError for a wrong number of weights."""
        logits = next(iter(batch.logits.values()))
        if self._weights is not None:
            return self._weights
        weights = self.checked_weights(logits.shape[1])
        if not sum(weights) > 0:
            raise UserError("defense.exit_weights must not be all 0")
        return logits.new_tensor([weight / sum(weights) for weight in weights])

    def after_backward(self) -> None:
        """Move perturbed weights back."""
        if self.weight_perturbation is not None:
            self.weight_perturbation.restore()


def head_norms(model: MultiExitNet) -> torch.Tensor:
    """Return the norm_E of each exit's last weight matrix.

    Catastrophic overfitting of a multi-exit network shows in late exits that overtake the early ones (Chen et al.,
    Neural Networks 150, 2022).
    """
    device = next(model.parameters()).device
    last = [[weight for weight in head.parameters() if weight.ndim > 1][-1:] for head in model.heads]
    none = torch.zeros((), device=device)
    return torch.stack([weights[0].detach().norm() if weights else none for weights in last])


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return the memory format that x_NCHW is stored in."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
