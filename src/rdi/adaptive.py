"""Real early exit for batches: samples that leave are taken out of the batch, so later stages never see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.macs import Costs, count
from rdi.thresholds.policy import Policy


@dataclass(frozen=True)
class Prediction:
    """labels_N: predicted class. exits_N: where each sample left, 0-based. macs_N: multiply-adds that it cost.

    macs counts all that ran for the sample: stages and every head on the way, convolutions and linear layers.
    """

    labels: torch.Tensor
    exits: torch.Tensor
    macs: torch.Tensor


class AdaptivePredictor:
    """Calls the stages one by one on the samples that are still undecided.

    model: in eval mode when called (it is put there and left there). policy: E-1 decisions for its E exits.
    Labels and exits equal those of `policy.choose(model(x))`. Raises UserError if policy and model differ in E.
    """

    def __init__(self, model: MultiExitNet, policy: Policy) -> None:
        if policy.exits != model.exits:
            raise UserError(f"the thresholds are for {policy.exits} exits, the network has {model.exits}")
        self.model = model.eval()
        self.policy = policy
        self._costs: dict[tuple[int, ...], Costs] = {}

    def costs(self, shape: Sequence[int]) -> Costs:
        """MACs per exit for one image of `shape` CHW, counted once per shape."""
        key = tuple(shape)
        if key not in self._costs:
            self._costs[key] = count(self.model, key)
        return self._costs[key]

    @torch.no_grad()  # not inference_mode: users go on computing with the result
    def __call__(self, x: torch.Tensor) -> Prediction:
        """x_NCHW in [0, 1] on the model's device -> Prediction."""
        samples = len(x)
        labels = torch.empty(samples, dtype=torch.long, device=x.device)
        exits = torch.empty_like(labels)
        running = torch.arange(samples, device=x.device)
        features = x
        seen: list[torch.Tensor] = []
        last = self.model.exits - 1
        for k, (stage, head) in enumerate(zip(self.model.stages, self.model.heads, strict=True)):
            features = stage(features)
            seen.append(head(features))
            leaving = (
                torch.ones_like(running, dtype=torch.bool)
                if k == last
                else self.policy.leaves(torch.stack(seen, dim=1))
            )
            labels[running[leaving]] = seen[-1][leaving].argmax(dim=1)
            exits[running[leaving]] = k
            if k == last or bool(leaving.all()):
                break
            staying = ~leaving
            running, features = running[staying], features[staying]
            seen = [logits[staying] for logits in seen]
        macs = torch.tensor(self.costs(x.shape[1:]).macs, device=x.device)
        return Prediction(labels, exits, macs[exits])
