"""Early exit for batches: samples that leave are taken out of the batch, so later stages do not run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rdi.attacks.base import check_images
from rdi.checks import choice, integer
from rdi.compaction_cost import Planner
from rdi.compiled import shared, warm_up
from rdi.errors import UserError
from rdi.exits.compact import close_up, closed_up, staying, take
from rdi.exits.net import MultiExitNet, check_place, checked
from rdi.macs import count
from rdi.records import Costs
from rdi.streaming import Stream, check_alike
from rdi.thresholds.policy import Policy

COMPACTION = ("auto", "always", "never")


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

    model: a MultiExitNet of E exits; it is put into eval mode.
    policy: of E exits.
    compaction: "always" takes samples out of the batch at the exit where they leave. "never" runs the whole network and
        decides then: no stage waits for a decision. "auto" does at each exit what costs less by measurements on this
        device (rdi.compaction_cost), which the first batch of a shape or size waits for.
    check: verify that images are numbers in [0, 1], which waits for the device.
    compile: run stages and heads compiled (torch.compile) for batches of a few sizes, to which others are cut and
        padded; the first batch of a shape waits for the compiler, which is logged, and where it fails one line says so
        and the plain network runs.

    All settings give the labels and exits of `policy.choose(model(x))`, but for random thresholds.

    Raises UserError if policy and model differ in E, for another compaction, and for a compiled network with gates.
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
        if policy.exits != checked(model).exits:
            raise UserError(f"the thresholds are for {policy.exits} exits, the network has {model.exits}")
        if compile and model.gated:
            raise UserError(
                "a network with gates runs other parts for every image and cannot be compiled: compile=False"
            )
        self.compaction = choice("compaction", compaction, COMPACTION)
        self.check = check
        self.model = model.eval()
        self.policy = policy
        self._net = shared(self.model) if compile else self.model
        self._warm: dict[object, int] = {}  # images of one kind -> largest batch that was compiled for
        self._planner = Planner(self._net, policy)
        self._costs: dict[tuple[int, ...], Costs] = {}
        self._macs: dict[object, torch.Tensor] = {}

    def costs(self, shape: Sequence[int]) -> Costs:
        """Return the MACs per exit for one image of `shape` CHW, counted once per shape."""
        key = tuple(shape)
        if key not in self._costs:
            try:
                self._costs[key] = count(self.model, key)
            except (RuntimeError, ValueError) as error:
                size = "x".join(map(str, key))
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"the network does not take images of {size} (CxHxW): {reason}") from error
        return self._costs[key]

    @torch.no_grad()
    def describe(self, shape: Sequence[int], samples: int) -> str:
        """Say in one line at which exits a batch is compacted, and why.

        shape: (C, H, W) of an image.
        samples: images in the batch, at least 1.
        """
        reasons = {"always": "compacts at every exit, as asked", "never": "runs the whole network, as asked"}
        if self.compaction != "auto":
            return f"batch {samples}: {reasons[self.compaction]}"
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        plan, _ = self._planner.plan(torch.zeros(1, *shape, device=device), samples)
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
        macs = self._prepare(x)
        decisions, pays = self._planned(x)
        answers, exits, compacted, skipped = self._staged(x, decisions, pays) if any(decisions) else self._masked(x)
        if self.compaction == "auto":
            self._planner.observe(exits)
        spent = macs[exits] if skipped is None else macs[exits] - skipped
        return Prediction(answers.argmax(dim=1), exits, spent, compacted, answers.float().softmax(dim=1))

    def stream(
        self, batches: Iterable[torch.Tensor], *, max_wait: int = 4, full: int | None = None
    ) -> Iterator[Prediction]:
        """Yield a Prediction per batch, in order; images that stay wait to be run together with later batches.

        batches: of x_NCHW as for calling the predictor, of any lengths, all images of one size.
        max_wait: largest number of later batches that are taken before an answer comes; 0: none.
        full: number of images before a stage that makes it run; None: as many as the first batch has.
        Labels and exits are those of `predictor(batch)`, but for random thresholds and for rounding.
        Raises UserError for arguments out of range, and for batches as when calling.
        """
        integer("max_wait", max_wait, 0)
        if full is not None:
            integer("full", full, 1)
        return self._stream(batches, max_wait, full)

    def _stream(self, batches: Iterable[torch.Tensor], max_wait: int, full: int | None) -> Iterator[Prediction]:
        running, macs = None, torch.empty(0)
        for number, x in enumerate(check_alike(batches)):
            macs = self._prepare(x)
            if running is None:
                running = Stream(self._net, self.policy, max_wait, full or max(1, len(x)))
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

    def _prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Check a batch, compile for its size where that is asked for, and return the MACs per exit on its device."""
        if self.check:
            check_images(x)
        check_place(self.model, x)
        macs = self._macs_on(x)
        key = (x.shape[1:], x.device, x.dtype)
        if self._net is not self.model and len(x) > self._warm.get(key, 0):
            warm_up(self._net, x)
            self._warm[key] = len(x)
        return macs

    def _planned(self, x: torch.Tensor) -> tuple[tuple[bool, ...], Callable[[int, int, int], bool]]:
        """Return the exits at which to find out who left, and whether compacting there pays: (exit, samples, stay)."""
        if self.compaction == "auto" and len(x):
            plan, table = self._planner.plan(x, len(x))
            return plan.decisions, table.pays
        return (self.compaction == "always",) * (self.model.exits - 1), lambda *_: True

    def _masked(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[bool, ...], torch.Tensor | None]:
        logits, skipped = self._net.judged(x)
        exits = self.policy.choose(logits)
        left = None if skipped is None else skipped.gather(1, exits[:, None])[:, 0]
        return self._answer(logits, exits), exits, (False,) * (self.model.exits - 1), left

    def _answer(self, logits: torch.Tensor, exits: torch.Tensor) -> torch.Tensor:
        """Return logits_NC that the policy answers with where each sample leaves."""
        rows = torch.arange(len(exits), device=exits.device)
        return self.policy.answers(logits)[rows, exits]

    def _staged(
        self, x: torch.Tensor, decisions: Sequence[bool], pays: Callable[[int, int, int], bool]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[bool, ...], torch.Tensor | None]:
        last = self.model.exits - 1
        skipped: torch.Tensor | None = None  # at the exit so far, of every image of x
        answers = torch.empty(0)
        exits = torch.empty(len(x), dtype=torch.long, device=x.device)
        compacted = [False] * last
        rows = torch.arange(len(x), device=x.device)  # of x, that the batch still holds
        leaving: dict[int, torch.Tensor] = {}  # exit -> bool per row, for the exits since somebody was taken out
        features, logits = x, torch.empty(0)
        for k, (stage, head) in enumerate(zip(self._net.stages, self._net.heads, strict=True)):
            features = stage(features)
            out = head(features)
            if k == 0:
                logits = out.new_empty(len(out), last + 1, *out.shape[1:])
                answers = out.new_empty(out.shape, dtype=torch.float32)
            logits[:, k] = out
            left = self.model.skipped(features, k)
            if left is not None:
                skipped = left.new_zeros(len(x)) if skipped is None else skipped
                # who has left an exit whose batch was not compacted keeps what it was there
                on = staying(list(leaving.values())) if leaving else torch.arange(len(rows), device=x.device)
                skipped[rows[on]] = left[on]
            if k == last:
                break
            leaving[k] = self.policy.leaves(logits[:, : k + 1])
            if not decisions[k]:
                continue
            stay = staying(list(leaving.values()))
            if len(stay) == len(rows):
                leaving.clear()
            elif len(stay) == 0 or pays(k, len(rows), len(stay)):
                compacted[k] = True
                if len(stay) == 0:
                    break
                self._write(answers, exits, rows, logits, leaving, k)
                order, holes, movers = closed_up(stay, len(rows))
                rows, logits = take(rows, order), take(logits, order)
                if _shared(features, x):
                    features = take(features, order)
                else:
                    features = close_up(features, holes, movers, len(order))
                leaving.clear()
        self._write(answers, exits, rows, logits, leaving, k)
        return answers, exits, tuple(compacted), skipped

    def _write(
        self,
        answers: torch.Tensor,
        exits: torch.Tensor,
        rows: torch.Tensor,
        logits: torch.Tensor,
        leaving: dict[int, torch.Tensor],
        k: int,
    ) -> None:
        """Record each row's exit and answer; rows still running get k for now."""
        first = torch.full_like(rows, k)
        for exit_, mask in reversed(leaving.items()):
            first = torch.where(mask, exit_, first)
        exits.index_copy_(0, rows, first)
        answers.index_copy_(0, rows, self._answer(logits, first).float())

    def _macs_on(self, x: torch.Tensor) -> torch.Tensor:
        """Return the MACs per exit on the device of x, kept there: a copy per batch would wait for the device."""
        key = (x.shape[1:], x.device)
        if key not in self._macs:
            self._macs[key] = torch.tensor(self.costs(x.shape[1:]).macs, device=x.device)
        return self._macs[key]


def _shared(features: torch.Tensor, x: torch.Tensor) -> bool:
    """Return whether a stage handed the caller's own images on: those must not be written to."""
    return features.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
