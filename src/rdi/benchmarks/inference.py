"""Rows of inference: what early exit saves in time beside what it saves in multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from rdi import compaction_cost
from rdi.adaptive import AdaptivePredictor
from rdi.attacks.engine import Engine
from rdi.benchmarks.timing import Answer, Spread, parts, race, row
from rdi.exits import MultiExitNet
from rdi.records import BenchRow
from rdi.thresholds import Entropy, Policy, ShareRule, ThresholdPolicy
from rdi.thresholds.rules import geometric_shares

BACKBONE, MASKED, ADAPTIVE = "backbone without early exits", "all exits, then choose", "adaptive"
Mix = float | Sequence[float] | None
"""Shares of the images per exit: a list, or each the same multiple of the one before; None: all at the last."""
MIXES: dict[str, Mix] = {"early": 0.5, "even": 1.0, "late": 2.0, "all at the last": None}
TARGETS = {
    ("cpu", 1, "even"): 0.7,
    ("cpu", 32, "even"): 0.7,
    ("cpu", 256, "even"): 0.9,
    ("cpu", 256, "early"): 0.9,
    ("cuda", 1024, "even"): 0.8,
    ("cuda", 1024, "early"): 0.8,
}
"""Device, batch size and mix -> least time saved / MACs saved."""
WORTH = 0.05
"""Least saving of multiply-adds at which a ratio of savings means something."""
CARE = 3
"""Times as many rounds where there is a target: a ratio of two small savings moves most from round to round."""
FEWEST = 128
"""Images per measurement at least, in several batches where they are smaller."""


def rows(
    model: MultiExitNet,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    repeats: int,
    at_least: float = 0.0,
    mixes: Mapping[str, Mix] = MIXES,
) -> list[BenchRow]:
    """Measure, per batch size, mix and form of the network, time saved / MACs saved against the plain backbone.

    model: in eval mode.
    x: images_NCHW in [0, 1] on its device, at least max(batch_sizes) of them.
    repeats, at_least: rounds and seconds per row, at least; CARE times the rounds where there is a target.
    mixes: exit shares by name.
    Values: slower_than_all_exits compares with the whole network on the whole batch. proportional is the ratio that
        would be reached if every stage took time in proportion to its samples and deciding took none: what is missing
        from there to 1 is that the stages differ in seconds per multiply-add.
    """
    found = []
    for form, engine in {"as trained": Engine(fold=False, channels_last=False), "folded": Engine()}.items():
        net = engine.copy(model).net
        for size in batch_sizes:
            images = x[: max(size, FEWEST)].to(memory_format=engine.memory_format)
            for mix, shares in mixes.items():
                chosen = policy(net, images, shares)
                target = TARGETS.get((x.device.type, size, mix))
                rounds = repeats if target is None else CARE * repeats
                found.append(_row(net, images, size, f"{mix}, {form}", chosen, rounds, at_least, target))
    return found


@torch.inference_mode()
def policy(net: MultiExitNet, x: torch.Tensor, mix: Mix) -> ThresholdPolicy:
    """Return thresholds that give these images the wanted mix."""
    if mix is None:
        return ThresholdPolicy(Entropy(), [-math.inf] * (net.exits - 1))
    shares = geometric_shares(net.exits, mix) if isinstance(mix, int | float) else mix
    return ShareRule(score=Entropy(), shares=shares).fit_logits(net(x).float())


def _row(
    net: MultiExitNet,
    x: torch.Tensor,
    size: int,
    name: str,
    chosen: Policy,
    repeats: int,
    at_least: float,
    target: float | None,
) -> BenchRow:
    predictor = AdaptivePredictor(net, chosen)
    batches = x.split(size)
    predictions = [predictor(batch) for batch in batches]
    exits = torch.cat([prediction.exits for prediction in predictions])
    mean_macs = torch.cat([prediction.macs for prediction in predictions]).double().mean()
    saved = 1 - float(mean_macs) / predictor.costs(x.shape[1:]).macs_plain

    @torch.inference_mode()  # as one image by itself runs
    def backbone(batch: torch.Tensor) -> None:
        net.logits_at(batch, [net.exits - 1]).argmax(dim=2)

    @torch.inference_mode()
    def masked(batch: torch.Tensor) -> None:
        logits = net(batch)
        exits = chosen.choose(logits)
        logits[torch.arange(len(batch), device=x.device), exits].argmax(dim=1)

    answers: dict[str, Answer] = {BACKBONE: backbone, MASKED: masked, ADAPTIVE: predictor}
    contestants = {name: parts(answer, batches) for name, answer in answers.items()}
    times = race(contestants, repeats=repeats, device=x.device, at_least=at_least)
    speed, against_masked = times.ratio(BACKBONE, ADAPTIVE), times.ratio(MASKED, ADAPTIVE)
    worth = saved >= WORTH
    lap = compaction_cost.measure(net, chosen, x[:size])
    alive = torch.tensor([float((exits >= k).double().mean()) for k in range(net.exits)], dtype=torch.double)
    ideal = float(torch.tensor(lap.parts, dtype=torch.double) @ alive) * len(batches)

    def fidelity(ratio: float | None) -> float:
        assert ratio is not None, "of several rounds"
        return (1 - 1 / ratio) / saved

    return row(
        "inference",
        name,
        size,
        BACKBONE,
        Spread(*map(fidelity, (speed.median, speed.low, speed.high))) if worth else None,
        target if worth else None,
        macs_saved=saved,
        proportional=(1 - ideal / times.median(BACKBONE)) / saved if worth else 0.0,
        time_saved=1 - 1 / speed.median,
        slower_than_all_exits=1 / against_masked.median - 1,
        rounds=times.rounds,
        images_per_second=len(x) / times.median(ADAPTIVE),
    )
