"""Check that what the attack found is what is judged: silent successes, other batch sizes, precisions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rdi.attacks.engine import Engine, FastCopy
from rdi.evaluating import judge
from rdi.exits.net import MultiExitNet
from rdi.failures import memory_is_short
from rdi.health.evaluation import Evaluation
from rdi.health.paired import above
from rdi.records import Check

SILENT = 0.01
LOST = 0.01
LOST_BF16 = 0.1
"""Shares of images allowed; bf16 keeps 8 bits, so logits move in the second or third digit."""
BATCHES = (1, 7)


@dataclass(frozen=True, kw_only=True)
class RecordingEngine(Engine):
    """An engine whose copy hands the outputs of its heads, exit by exit, to `tell(exit, logits_NC)`."""

    record: Callable[[int, torch.Tensor], None]

    def copy(self, model: MultiExitNet) -> FastCopy:
        """Make a copy that counts its passes."""
        made = super().copy(model)
        for k, head in enumerate(made.net.heads):
            head.register_forward_hook(self._hook(k))
        return made

    def _hook(self, k: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        return lambda module, given, logits: self.record(k, logits.detach())


@dataclass
class IterateRecorder:
    """Remembers which images the policy ever got wrong on the crafting copy, one attack over a split at a time."""

    evaluation: Evaluation
    begin: int = 0
    heads: list[torch.Tensor] = field(default_factory=list)
    fooled: torch.Tensor | None = None
    all: list[torch.Tensor] = field(default_factory=list)

    def record(self, k: int, logits_NC: torch.Tensor) -> None:
        """Take the logits of exit k of the next iterate; exits come in order."""
        self.heads.append(logits_NC.float())
        if k == self.evaluation.net.exits - 1:
            logits = torch.stack(self.heads, dim=1)
            labels = self.evaluation.split.labels[self.begin : self.begin + len(logits)]
            wrong = ~judge(logits, labels, self.evaluation.policy).correct
            self.fooled = wrong if self.fooled is None else self.fooled | wrong
            self.heads = []

    def next_batch(self) -> None:
        """Close a batch: all its iterates have come."""
        if self.fooled is not None:
            self.begin += len(self.fooled)
            self.all.append(self.fooled.cpu())
        self.fooled = None


def silent_successes(evaluation: Evaluation) -> Check:
    """Count the images that the policy got wrong at some iterate and right in the end ("silent success", IoAF)."""
    recorder = IterateRecorder(evaluation)
    # compiled passes would not show their iterates
    engine = RecordingEngine(**{**asdict(evaluation.engine), "compile": None}, record=recorder.record)
    verdict = evaluation.verdict(
        evaluation.net,
        evaluation.policy,
        evaluation.split,
        replace(evaluation.main, early_stop=False).for_policy(evaluation.policy),
        engine,
        see=lambda x: recorder.next_batch(),
    )
    ever = torch.cat(recorder.all) if recorder.all else torch.zeros_like(verdict.right)
    silent = int((ever & verdict.right).sum())
    return Check(
        name="silent successes",
        passed=not above(silent, len(ever), SILENT),
        figure=f"{silent} of {len(ever)} images were fooled on the way and handed back unfooled "
        f"(allowed {100 * SILENT:g} % and chance)",
        meaning="The attack had found mistakes and lost them, or its copy of the network decides otherwise: the "
        "accuracy is too high by as much.",
    )


def rejudged(evaluation: Evaluation) -> Check:
    """Judge the successes of the main attack again: other batch sizes, float64 and bf16, 8-bit pixels."""
    fooling = evaluation.under(None).right & ~evaluation.under(evaluation.main).right
    x, y = evaluation.under(evaluation.main).images[fooling], evaluation.split.labels.cpu()[fooling]
    if len(x) == 0:
        return Check(
            name="judged again",
            passed=False,
            figure="the attack fools no image that was right, so there is nothing to judge again",
            meaning="Nothing was fooled, so nothing shows that the attack works here: judge more images, or give it "
            "more steps or a larger eps, and look at the lines on gradients and on large eps.",
        )
    lost = {f"batches of {size}": right(evaluation, evaluation.net, x, y, size) for size in (*BATCHES, len(x))}
    refused = []
    for name, kind in {"float64": torch.float64, "bf16": torch.bfloat16}.items():
        try:
            lost[name] = right(evaluation, copy.deepcopy(evaluation.net).to(kind), x, y, evaluation.batch_size)
        except (RuntimeError, TypeError) as error:  # a layer of the user's own may know float32 alone
            if memory_is_short(error):
                raise
            refused.append(f", {name} not judged: the network does not run in it")
    rounded = right(evaluation, evaluation.net, (x * 255).round() / 255, y, evaluation.batch_size)
    passed = not any(above(int(one.sum()), len(x), LOST_BF16 if name == "bf16" else LOST) for name, one in lost.items())
    shown = ", ".join(f"{name} {int(one.sum())}" for name, one in lost.items()) + "".join(refused)
    return Check(
        name="judged again",
        passed=passed,
        figure=f"of {len(x)} successes no longer wrong: {shown}; with pixels rounded to 8 bits {int(rounded.sum())}",
        meaning="Successes depend on the batch size or the rounding of the arithmetic: another machine would print "
        "another accuracy.",
    )


@torch.inference_mode()
def right(evaluation: Evaluation, net: MultiExitNet, x: torch.Tensor, y: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return right_N of the policy on x_NCHW, by `net` in its own precision, in batches of this size."""
    parameter = next(net.parameters())
    logits = [net(part.to(parameter.device, parameter.dtype)).float().cpu() for part in x.split(batch_size)]
    return judge(torch.cat(logits), y, evaluation.policy).correct
