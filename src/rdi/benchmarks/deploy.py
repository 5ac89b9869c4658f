"""Rows of deployment: compiled networks, streams, and exports in onnxruntime, each against what it replaces."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rdi.adaptive import AdaptivePredictor
from rdi.attacks.engine import Engine
from rdi.benchmarks.inference import FEWEST, MIXES, WORTH, policy
from rdi.benchmarks.timing import Times, race
from rdi.compiled import compiled_static, warm_up
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exporting.policies import decision_of
from rdi.exporting.runner import Runner
from rdi.exporting.write import export
from rdi.records import BenchRow
from rdi.thresholds import Policy

STATIC, STATIC_COMPILED = "static", "static, compiled"
ADAPTIVE, ADAPTIVE_COMPILED, STREAM, RUNNER = "adaptive", "adaptive, compiled", "stream", "onnxruntime runner"
AGAINST = {
    STATIC_COMPILED: STATIC,
    ADAPTIVE: STATIC,
    ADAPTIVE_COMPILED: STATIC_COMPILED,
    STREAM: ADAPTIVE,
    RUNNER: ADAPTIVE,
}
"""Contestant -> what it is compared with. Static: the backbone without early exits."""
TARGETS = {STREAM: 1.05, RUNNER: 1.0}
"""Least ratio on the CPU at 256 images of an even mix."""
logger = logging.getLogger("rdi")


def rows(
    model: MultiExitNet, x: torch.Tensor, batch_sizes: Sequence[int], repeats: int, at_least: float = 0.0
) -> list[BenchRow]:
    """Measure, per batch size and exit mix, every contestant: time of what it replaces / its own.

    model: in eval mode, float32; BatchNorm is folded and the memory format channels-last for all contestants.
    x: _NCHW in [0, 1], at least max(batch_sizes) images, on the model's device.
    repeats, at_least: rounds and seconds per mix, at least. Values: images_per_second, macs_saved against the static
        network, and time_saved. The rows of onnxruntime are left out without the extra `deploy`, and on a GPU.
    """
    net = Engine().copy(model).net
    static = compiled_static(net)
    runner = None if x.is_cuda else _runner(net, x)
    found = []
    for size in batch_sizes:
        images = x[: max(size, FEWEST)].to(memory_format=torch.channels_last)
        warm_up(static, images[:size])
        for mix, ratio in MIXES.items():
            chosen = policy(net, images, ratio)
            found += _rows(net, static, runner, images, size, mix, chosen, repeats, at_least)
    return found


def _rows(
    net: MultiExitNet,
    static: torch.nn.Module,
    runner: Runner | None,
    x: torch.Tensor,
    size: int,
    mix: str,
    chosen: Policy,
    repeats: int,
    at_least: float,
) -> list[BenchRow]:
    batches = x.split(size)
    eager = AdaptivePredictor(net, chosen)
    fast = AdaptivePredictor(net, chosen, compile=True)
    images = [batch.contiguous().numpy() for batch in batches] if runner else []

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            net.logits_at(batch, [net.exits - 1]).argmax(dim=2)

    @torch.no_grad()
    def plain_compiled() -> None:
        for batch in batches:
            static(batch).argmax(dim=1)

    contestants: dict[str, Callable[[], object]] = {
        STATIC: plain,
        STATIC_COMPILED: plain_compiled,
        ADAPTIVE: lambda: [eager(batch) for batch in batches],
        ADAPTIVE_COMPILED: lambda: [fast(batch) for batch in batches],
        STREAM: lambda: list(eager.stream(batches)),
    }
    if runner is not None:
        runner.policy["decision"], _ = decision_of(chosen)
        contestants[RUNNER] = lambda: [runner(batch) for batch in images]
    times = race(contestants, repeats=repeats, device=x.device, at_least=at_least)
    spent = torch.cat([eager(batch).macs for batch in batches]).double().mean()
    saved = 1 - float(spent) / eager.costs(x.shape[1:]).macs_plain
    even = mix == "even" and size == 256 and not x.is_cuda
    return [
        _row(times, name, f"{name}, {mix}", size, len(x), saved, TARGETS.get(name) if even else None)
        for name in contestants
        if name in AGAINST
    ]


def _row(
    times: Times, contestant: str, name: str, size: int, images: int, saved: float, target: float | None
) -> BenchRow:
    against = AGAINST[contestant]
    speed = times.ratio(against, contestant)
    adaptive = contestant != STATIC_COMPILED
    values = {"images_per_second": images / times.median(contestant), "rounds": times.rounds}
    if adaptive:
        values |= {"macs_saved": saved, "time_saved": 1 - 1 / speed.median}
    if contestant in (ADAPTIVE, ADAPTIVE_COMPILED) and saved >= WORTH:
        values["time_saved_per_macs_saved"] = (1 - 1 / speed.median) / saved
    return BenchRow(
        group="deploy",
        name=name,
        against=against,
        batch_size=size,
        ratio=speed.median,
        ratio_low=speed.low,
        ratio_high=speed.high,
        target=target,
        values=values,
    )


def _runner(net: MultiExitNet, x: torch.Tensor) -> Runner | None:
    """Export to a folder that goes away, and load it; None where the extra is missing."""
    chosen = policy(net, x, 1.0)
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "export"
            export(net, chosen, (255 * x[:1]).to(torch.uint8), folder)
            return Runner(folder, threads=torch.get_num_threads())
    except UserError as error:
        logger.warning("the rows of onnxruntime are left out: %s", error)
        return None
