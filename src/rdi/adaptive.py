"""Real early exit for batches: samples that leave are taken out of the batch, so later stages never see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rdi.breakeven import Planner
from rdi.checks import choice
from rdi.errors import UserError
from rdi.exits.compact import close_up, closed_up, staying, take
from rdi.exits.net import MultiExitNet
from rdi.macs import Costs, count
from rdi.thresholds.policy import Policy

COMPACTION = ("auto", "always", "never")


@dataclass(frozen=True)
class Prediction:
    """labels_N: predicted class. exits_N: where each sample left, 0-based. macs_N: multiply-adds of that exit.

    macs counts stages and every head on the way, convolutions and linear layers, as if the sample ran alone.
    compacted: for every exit but the last, whether the samples that had left were taken out of the batch there;
    all False if the whole network ran on all of them.
    """

    labels: torch.Tensor
    exits: torch.Tensor
    macs: torch.Tensor
    compacted: tuple[bool, ...]


class AdaptivePredictor:
    """Calls the stages one by one on the samples that are still undecided.

    model: in eval mode when called (it is put there and left there). policy: E-1 decisions for its E exits.
    compaction: "always" takes samples out at the exit where they leave. "never" runs the whole network and decides
    then: no stage waits for a decision. "auto" does at each exit what costs less by the break-even that it measures
    (rdi.breakeven): the first batch of a shape or size takes longer for that. All three give the labels and exits
    of `policy.choose(model(x))`, but for what a policy leaves to chance. Raises UserError if policy and model differ
    in E or for another compaction.
    """

    def __init__(self, model: MultiExitNet, policy: Policy, *, compaction: str = "auto") -> None:
        if policy.exits != model.exits:
            raise UserError(f"the thresholds are for {policy.exits} exits, the network has {model.exits}")
        self.compaction = choice("compaction", compaction, COMPACTION)
        self.model = model.eval()
        self.policy = policy
        self._planner = Planner(self.model, policy)
        self._costs: dict[tuple[int, ...], Costs] = {}
        self._macs: dict[object, torch.Tensor] = {}

    def costs(self, shape: Sequence[int]) -> Costs:
        """MACs per exit for one image of `shape` CHW, counted once per shape."""
        key = tuple(shape)
        if key not in self._costs:
            self._costs[key] = count(self.model, key)
        return self._costs[key]

    @torch.no_grad()
    def describe(self, shape: Sequence[int], samples: int) -> str:
        """What a batch of so many (at least 1) images of `shape` CHW will go through and why, in one line."""
        ways = {"always": "compacts at every exit, as asked", "never": "runs the whole network, as asked"}
        if self.compaction != "auto":
            return f"batch {samples}: {ways[self.compaction]}"
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        plan, _ = self._planner.plan(torch.zeros(1, *shape, device=device), samples)
        whole = f"{1e3 * plan.whole:.3g} ms for the whole network"
        if not any(plan.looks):
            return f"batch {samples}: runs the whole network, {whole}; no compaction is expected to be faster"
        looks = ", ".join(str(k) for k, looks in enumerate(plan.looks) if looks)
        return f"batch {samples}: compacts at exits {looks}, {1e3 * plan.seconds:.3g} ms expected; {whole}"

    @torch.no_grad()  # not inference_mode: users go on computing with the result
    def __call__(self, x: torch.Tensor) -> Prediction:
        """x_NCHW in [0, 1] on the model's device -> Prediction."""
        looks, pays = self._way(x)
        labels, exits, compacted = self._staged(x, looks, pays) if any(looks) else self._masked(x)
        if self.compaction == "auto":
            self._planner.observe(exits)
        return Prediction(labels, exits, self._macs_on(x)[exits], compacted)

    def _way(self, x: torch.Tensor) -> tuple[tuple[bool, ...], Callable[[int, int, int], bool]]:
        """At which exits to look who left, and whether taking samples out there pays: (exit, samples, stay)."""
        if self.compaction == "auto" and len(x):
            plan, table = self._planner.plan(x, len(x))
            return plan.looks, table.pays
        return (self.compaction == "always",) * (self.model.exits - 1), lambda *_: True

    def _masked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[bool, ...]]:
        logits = self.model(x)
        exits = self.policy.choose(logits)
        return self.policy.predict(logits, exits), exits, (False,) * (self.model.exits - 1)

    def _staged(
        self, x: torch.Tensor, looks: Sequence[bool], pays: Callable[[int, int, int], bool]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[bool, ...]]:
        last = self.model.exits - 1
        labels = torch.empty(len(x), dtype=torch.long, device=x.device)
        exits = torch.empty_like(labels)
        compacted = [False] * last
        rows = torch.arange(len(x), device=x.device)  # of x, that the batch still holds
        leaving: dict[int, torch.Tensor] = {}  # exit -> bool per row, for the exits since somebody was taken out
        features, logits = x, torch.empty(0)
        for k, (stage, head) in enumerate(zip(self.model.stages, self.model.heads, strict=True)):
            features = stage(features)
            out = head(features)
            if k == 0:
                logits = out.new_empty(len(out), last + 1, *out.shape[1:])
            logits[:, k] = out
            if k == last:
                break
            leaving[k] = self.policy.leaves(logits[:, : k + 1])
            if not looks[k]:
                continue
            stay = staying(list(leaving.values()))
            if len(stay) == len(rows):
                leaving.clear()
            elif len(stay) == 0 or pays(k, len(rows), len(stay)):
                compacted[k] = True
                if len(stay) == 0:
                    break
                self._write(labels, exits, rows, logits, leaving, k)
                order, holes, movers = closed_up(stay, len(rows))
                rows, logits = take(rows, order), take(logits, order)
                if _shared(features, x):
                    features = take(features, order)
                else:
                    features = close_up(features, holes, movers, len(order))
                leaving.clear()
        self._write(labels, exits, rows, logits, leaving, k)
        return labels, exits, tuple(compacted)

    def _write(
        self,
        labels: torch.Tensor,
        exits: torch.Tensor,
        rows: torch.Tensor,
        logits: torch.Tensor,
        leaving: dict[int, torch.Tensor],
        k: int,
    ) -> None:
        """Enter the first exit that lets each row go, and its label. Who stays gets exit k, until a later entry."""
        first = torch.full_like(rows, k)
        for exit_, mask in reversed(leaving.items()):
            first = torch.where(mask, exit_, first)
        exits.index_copy_(0, rows, first)
        labels.index_copy_(0, rows, self.policy.predict(logits, first))

    def _macs_on(self, x: torch.Tensor) -> torch.Tensor:
        """MACs per exit on the device of x, kept there: a copy per batch would wait for the device."""
        key = (x.shape[1:], x.device)
        if key not in self._macs:
            self._macs[key] = torch.tensor(self.costs(x.shape[1:]).macs, device=x.device)
        return self._macs[key]


def _shared(features: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a stage handed the caller's own images on: those must not be written to."""
    return features.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
