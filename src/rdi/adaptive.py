"""Early exit for batches: samples that leave are taken out of the batch, so later stages do not run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from rdi.attacks.base import check_images
from rdi.checks import choice, flag, image_shape, integer
from rdi.compaction_cost import Planner
from rdi.compiled import CompiledNet, shared, warm_up
from rdi.cpu_batches import leave_early
from rdi.errors import UserError
from rdi.exits.compact import close_up, closed_up, staying
from rdi.exits.net import MultiExitNet, check_like, checked, fitting, refuse_overridden
from rdi.macs import count
from rdi.records import Costs
from rdi.single_image import SingleImage
from rdi.streaming import Stream, check_alike
from rdi.thresholds.in_numpy import decision, softmax
from rdi.thresholds.policy import Policy, checked_policy

COMPACTION = ("auto", "always", "never")
FULL = 16
"""Images from which on more of them hardly save any more time per image, on two cores."""


@dataclass(frozen=True)
class Prediction:
    """Predictions of AdaptivePredictor for a batch of N images, on the device of the images.

    labels: int64_N, the predicted class.
    exits: int64_N, where each image left, 0-based.
    macs: int64_N, multiply-adds up to that exit, stages and every head on the way, as if the image ran alone; without
        what its gates left out.
    compacted: for every exit but the last, whether the images that had left were taken out of the batch there; all
        False if the whole network ran on all of them.
    probabilities: float32_NC, softmax of what the policy answers with at that exit; its largest is the label's.
    """

    labels: torch.Tensor
    exits: torch.Tensor
    macs: torch.Tensor
    compacted: tuple[bool, ...]
    probabilities: torch.Tensor


class AdaptivePredictor:
    """An early-exit predictor that runs each stage on the samples that have not left yet.

    model: a MultiExitNet of E exits; it is put into eval mode. Its weights may change afterwards, its modules may not.
    policy: of E exits.
    compaction: "always" takes samples out of the batch at the exit where they leave. "never" runs the whole network and
        decides then: no stage waits for a decision. "auto" does at each exit what costs less by measurements on this
        device (rdi.compaction_cost), which the first batch of a shape or size waits for; one float32 image on a CPU
        stops where it leaves.
    check: verify that images are numbers in [0, 1], which waits for the device.
    compile: run every stage with its head compiled (torch.compile), for batches of any length; the first batch of a
        shape waits for the compiler, which is logged, and where it fails one line says so and the plain network runs.

    All settings give the labels and exits of `policy.choose(model(x))`, but for random thresholds.

    Raises UserError if policy and model differ in E, for another compaction, and for a compiled network with gates or
    with a way of its own from stage to stage.
    """

    def __init__(
        self,
        model: MultiExitNet,
        policy: Policy,
        *,
        compaction: str = "auto",
        check: bool = True,
        compile: bool = False,
    ) -> None:
        checked(model)
        flag("check", check)
        if flag("compile", compile) and model.gated:
            raise UserError(
                "a network with gates runs other parts for every image and cannot be compiled: compile=False"
            )
        if compile:
            refuse_overridden(model, "compiled stages and heads would leave out: compile=False")
        self.compaction = choice("compaction", compaction, COMPACTION)
        self.check = check
        self.model = model.eval()
        self._parameter = next(self.model.parameters(), None)  # finding it takes as long as an operator
        self._net = shared(self.model) if compile else self.model
        self._warm: set[object] = set()  # kinds of images that were compiled for
        self._planner = Planner(self._net, policy)
        self._costs: dict[tuple[int, ...], Costs] = {}
        self._macs: dict[object, torch.Tensor] = {}
        self.policy = policy

    @property
    def policy(self) -> Policy:
        """Return the policy; another one may be set between two batches."""
        return self._planner.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """Decide by another policy from now on. Raises UserError for one of another number of exits."""
        self._planner.policy = checked_policy(policy, self.model.exits)
        stops = self.compaction != "never" and not self.model.gated
        self._image = SingleImage(self._net, policy) if stops else None
        self._decide = decision(policy) if stops else None

    def costs(self, shape: Sequence[int]) -> Costs:
        """Return the MACs per exit for one image of `shape` CHW, counted once per shape."""
        key = image_shape(shape)
        if key not in self._costs:
            with fitting(key):
                self._costs[key] = count(self.model, key)
        return self._costs[key]

    @torch.no_grad()
    def describe(self, shape: Sequence[int], samples: int) -> str:
        """Say in one line at which exits a batch is compacted, and why.

        shape: (C, H, W) of an image.
        samples: images in the batch, at least 1.
        """
        integer("samples", samples, 1)
        self.costs(shape)
        reasons = {"always": "compacts at every exit, as asked", "never": "runs the whole network, as asked"}
        if self.compaction != "auto":
            return f"batch {samples}: {reasons[self.compaction]}"
        one = torch.zeros(1, *shape) if self._parameter is None else self._parameter.new_zeros(1, *shape)
        if samples == 1 and self._stops(one):
            return "batch 1: stops where the image leaves"
        plan, _ = self._planner.plan(one, samples)
        whole = f"{1e3 * plan.seconds_without:.3g} ms for the whole network"
        if not any(plan.decisions):
            return f"batch {samples}: runs the whole network, {whole}; no compaction is expected to be faster"
        decisions = ", ".join(str(k) for k, decisions in enumerate(plan.decisions) if decisions)
        return f"batch {samples}: compacts at exits {decisions}, {1e3 * plan.seconds:.3g} ms expected; {whole}"

    @torch.no_grad()  # not inference_mode: users go on computing with the result
    def __call__(self, x: torch.Tensor) -> Prediction:
        """Predict a batch.

        x: images_NCHW in [0, 1] on the model's device and in its precision.
        Raises UserError for anything else: another type, shape, range or device, NaN, images of another size.
        """
        self._prepare(x)
        if self._stops(x):
            return self._alone(x)
        decisions, pays = self._planned(x)
        if self._decide is not None and len(x) and x.is_cpu and x.dtype is torch.float32:
            return self._on_cpu(x, decisions, pays)
        macs = self._macs_on(x)
        if len(x) == 1 and (any(decisions) or not x.is_cuda):
            return self._single(x, decisions, macs)
        if not any(decisions):
            compacted = (False,) * len(decisions)
            logits, skipped = self._net.judged(x)
            exits = self.policy.choose(logits)
        else:
            logits, exits, compacted, skipped = self._staged(x, decisions, pays)
        if self.compaction == "auto":
            self._planner.observe(exits)
        rows = torch.arange(len(x), device=x.device)
        answers = self.policy.answers(logits)[rows, exits]
        spent = macs[exits] if skipped is None else macs[exits] - skipped[rows, exits]
        return Prediction(answers.argmax(dim=1), exits, spent, compacted, answers.float().softmax(dim=1))

    def stream(
        self, batches: Iterable[torch.Tensor], *, max_wait: int = 4, full: int | None = None
    ) -> Iterator[Prediction]:
        """Yield a Prediction per batch, in order; images wait before a stage to be run together with later batches.

        batches: of x_NCHW as for calling the predictor, of any lengths, all images of one size.
        max_wait: largest number of later batches that are taken before an answer comes; 0: none.
        full: number of images before a stage that makes it run; None: as many as the first batch has, at least 16.
        Labels and exits are those of `predictor(batch)`, but for random thresholds and for rounding.
        Raises UserError for arguments out of range, and for batches as when calling.
        """
        integer("max_wait", max_wait, 0)
        if full is not None:
            integer("full", full, 1)
        return self._stream(check_alike(batches), max_wait, full)

    def _stream(self, batches: Iterable[torch.Tensor], max_wait: int, full: int | None) -> Iterator[Prediction]:
        running, macs = None, torch.empty(0)
        for number, x in enumerate(batches):
            self._prepare(x)
            macs = self._macs_on(x)
            if running is None:
                running = Stream(self._net, self.policy, max_wait, full or max(FULL, len(x)))
            running.put(number, x)
            yield from self._streamed(running, macs)
        if running is not None:
            running.finish()
            yield from self._streamed(running, macs)

    def _streamed(self, running: Stream, macs: torch.Tensor) -> Iterator[Prediction]:
        compacted = (True,) * (self.model.exits - 1)
        for answers, exits, skipped in running.done():
            spent = macs[exits] - skipped
            yield Prediction(answers.argmax(dim=1), exits, spent, compacted, answers.softmax(dim=1))

    def _prepare(self, x: torch.Tensor) -> None:
        """Check a batch, and compile for its size where that is asked for; the network may have been trained since."""
        if self.model.training:
            self.model.eval()
        if self.check:
            check_images(x)
        check_like(self._parameter, x)
        self._costs_of(x)  # says so where the network does not take such images
        if (
            isinstance(self._net, CompiledNet)
            and (key := (x.shape[1:], x.device, x.dtype, len(x) > 1)) not in self._warm
        ):
            warm_up(self._net, x)
            self._warm.add(key)

    def _planned(self, x: torch.Tensor) -> tuple[tuple[bool, ...], Callable[[int, int, int], bool]]:
        """Return the exits at which to find out who left, and whether compacting there pays: (exit, samples, stay)."""
        if self.compaction == "auto" and len(x):
            plan, table = self._planner.plan(x, len(x))
            return plan.decisions, table.pays
        return (self.compaction == "always",) * (self.model.exits - 1), lambda *_: True

    def _stops(self, x: torch.Tensor) -> bool:
        """Return whether x is an image that stops where it leaves: to find that out costs nearly nothing."""
        return self._image is not None and len(x) == 1 and x.is_cpu and x.dtype is torch.float32

    def _alone(self, x: torch.Tensor) -> Prediction:
        with self._inference():
            exit, answer = self._image(x)  # type: ignore[misc]
        compacted = tuple(k == exit for k in range(self.model.exits - 1))
        return self._prediction(x, answer[None], np.array([exit], dtype=np.int64), compacted)

    def _on_cpu(self, x: torch.Tensor, decisions: Sequence[bool], pays: Callable[[int, int, int], bool]) -> Prediction:
        assert self._decide is not None, "asked before"
        with self._inference():
            answers, exits, compacted = leave_early(self._net, self._decide, x, decisions, pays)
        found = self._prediction(x, answers, exits, compacted)
        if self.compaction == "auto":
            self._planner.observe(found.exits)
        return found

    def _inference(self) -> AbstractContextManager[object]:
        # a compiled network would be compiled anew for inference mode
        return torch.inference_mode() if self._net is self.model else nullcontext()

    def _prediction(
        self, x: torch.Tensor, answers: np.ndarray, exits: np.ndarray, compacted: tuple[bool, ...]
    ) -> Prediction:
        numbers = answers.argmax(axis=1), exits, np.array(self._costs_of(x).macs, dtype=np.int64)[exits]
        labels, left, spent = map(torch.from_numpy, numbers)
        return Prediction(labels, left, spent, compacted, torch.from_numpy(softmax(answers)))

    def _single(self, x: torch.Tensor, decisions: Sequence[bool], macs: torch.Tensor) -> Prediction:
        """Predict one image: it stops or goes on, and nothing is moved. Every operator counts here."""
        features = x
        outputs, asked, skipped = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        logits, stopped = torch.empty(0), len(decisions)
        with self._inference():
            for k in range(self.model.exits):
                features, out = self._net.step(features, k)
                outputs.append(out)
                logits = torch.stack(outputs, dim=1)
                left = self.model.skipped(features, k)
                if left is not None:
                    skipped.append(left)
                if k == len(decisions):
                    break
                asked.append(self.policy.leaves(logits))
                if decisions[k] and any(asked):
                    stopped = k
                    break
        exit = next((k for k, leave in enumerate(asked) if leave), len(decisions))
        exits = torch.full((1,), exit, device=x.device)
        if self.compaction == "auto":
            self._planner.observe(exits)
        answers = self.policy.answers(logits)[:, exit]
        spent = macs[exit : exit + 1] - (skipped[exit] if skipped else 0)
        compacted = tuple(k == stopped for k in range(len(decisions)))
        return Prediction(answers.argmax(dim=1), exits, spent, compacted, answers.float().softmax(dim=1))

    def _staged(
        self, x: torch.Tensor, decisions: Sequence[bool], pays: Callable[[int, int, int], bool]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[bool, ...], torch.Tensor | None]:
        """Return logits_NEC, exits_N, where the batch was compacted, and the MACs skipped up to each exit, NE.

        What lies behind an image's exit is not filled in.
        """
        features, last = x, self.model.exits - 1
        compacted = [False] * last
        rows: torch.Tensor | None = None  # of x, that the batch still holds; None: all
        gone: torch.Tensor | None = None  # bool per row of the batch: left, and is carried along
        logits, skipped = torch.empty(0), None
        leaves = torch.ones(len(x), last + 1, dtype=torch.bool, device=x.device)  # of x, per exit
        for k in range(self.model.exits):
            features, out = self._net.step(features, k)
            if k == 0:
                logits = out.new_zeros(len(x), last + 1, *out.shape[1:])
            _write(logits[:, k], rows, out)
            left = self.model.skipped(features, k)
            if left is not None:
                skipped = left.new_zeros(len(x), last + 1) if skipped is None else skipped
                _write(skipped[:, k], rows, left)
            if k == last:
                break
            seen = logits[:, : k + 1]
            leave = self.policy.leaves(seen if rows is None else seen.index_select(0, rows))
            _write(leaves[:, k], rows, leave)
            gone = leave if gone is None else gone | leave
            if not decisions[k]:
                continue
            stay = staying(gone)
            if len(stay) == 0:
                compacted[k] = True
                break
            if len(stay) < len(gone) and pays(k, len(gone), len(stay)):
                compacted[k] = True
                holes, movers = closed_up(gone, stay)
                rows = torch.arange(len(x), device=x.device) if rows is None else rows
                rows = close_up(rows, holes, movers, len(stay))
                features = features.clone() if _shared(features, x) else features
                features = close_up(features, holes, movers, len(stay))
                gone = None
        return logits, leaves.to(torch.uint8).argmax(dim=1), tuple(compacted), skipped

    def _costs_of(self, x: torch.Tensor) -> Costs:
        return self._costs.get(x.shape[1:]) or self.costs(x.shape[1:])  # the first without checks

    def _macs_on(self, x: torch.Tensor) -> torch.Tensor:
        """Return the MACs per exit on the device of x, kept there: a copy per batch would wait for the device."""
        key = (x.shape[1:], x.device)
        if key not in self._macs:
            self._macs[key] = torch.tensor(self.costs(x.shape[1:]).macs, device=x.device)
        return self._macs[key]


def _write(column: torch.Tensor, rows: torch.Tensor | None, values: torch.Tensor) -> None:
    """Write the values to the given rows of a column; None: to all."""
    if rows is None:
        column.copy_(values)
    else:
        column.index_copy_(0, rows, values)


def _shared(features: torch.Tensor, x: torch.Tensor) -> bool:
    """Return whether a stage handed the caller's own images on: those must not be written to."""
    return features.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
