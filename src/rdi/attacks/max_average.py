"""Max-average: of E single-exit candidates keep, per sample, the one with the largest mean loss over exits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.base import added
from rdi.attacks.gradient import Best, GradientAttack
from rdi.attacks.objectives import cross_entropy, loss_named, share_fooled
from rdi.checks import integer
from rdi.exits.net import MultiExitNet


@dataclass(kw_only=True)
class MaxAverage(GradientAttack):
    """The paper's max-average attack (Hu et al., ICLR 2020; official `ifgm_max_v2`), in one nested pass.

    Of E single-exit candidates per start it keeps the one with the largest mean cross-entropy over exits. The
    candidates are crafted together: E copies of the batch enter stage 0, copy k leaves after head k, so every stage
    runs only the copies that still need it. The result equals that of E single-exit runs with the same noise, drawn in
    the order of the exits.

    max_images: copies that are in memory at once; None: no bound.
    loss: loss that a candidate climbs at its exit, "ce" or "dlr".
    """

    max_images: int | None = None
    loss: str = added("ce")

    def __post_init__(self) -> None:
        super().__post_init__()
        loss_named(self.loss)
        if self.max_images is not None:
            integer("attack.max_images", self.max_images, 1)

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW: E candidates per start, of which the choice is by mean cross-entropy."""
        # all noise first: the result does not depend on how the batch is cut
        starts = [[self.start(x, generator) for _ in range(model.exits)] for _ in range(self.restarts)]
        size = len(x) if self.max_images is None else max(1, self.max_images // model.exits)
        chosen = []
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            found = [
                best_candidate(model, self._candidates(model, x[part], y[part], [s[part] for s in one]), y[part])
                for one in starts
            ]
            for other in found[1:]:
                found[0].join(other)
            chosen.append(found[0].x_adv)
        return torch.cat(chosen)

    def _candidates(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, starts: list[torch.Tensor]
    ) -> torch.Tensor:
        """One candidate per exit and image, x_ENCHW, from one start per exit."""

        def judge(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, labels = model.nested(x_adv).flatten(0, 1).float()[:, None], y.repeat(model.exits)
            return loss_named(self.loss)(logits, labels)[:, 0], share_fooled(logits.detach(), labels)

        # cat, unlike repeat, keeps the memory format
        copies = torch.cat([x] * model.exits)
        return self.ascend(judge, torch.cat(starts), copies).x_adv.unflatten(0, (model.exits, len(x)))


@torch.no_grad()
def best_candidate(model: MultiExitNet, candidates: torch.Tensor, y: torch.Tensor) -> Best:
    """Choose, per image, the candidate with the largest mean loss over exits; on a tie the first.

    candidates: x_KNCHW.
    y: labels_N.
    On a tie the first one.
    """
    logits = torch.stack([model(x).float() for x in candidates])
    losses = torch.stack([cross_entropy(one, y).mean(dim=1) for one in logits])
    fooled = torch.stack([share_fooled(one, y) for one in logits])
    first, rows = losses.argmax(dim=0), torch.arange(len(y), device=y.device)
    return Best(candidates[first, rows], fooled[first, rows], losses[first, rows])
