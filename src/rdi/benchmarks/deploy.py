"""Rows of deployment: compiled networks, streams, and exports in other runtimes, each against what it replaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch

from rdi.adaptive import AdaptivePredictor
from rdi.attacks.engine import Engine
from rdi.benchmarks.devices import ONNXRUNTIME, OPENVINO, Exported
from rdi.benchmarks.inference import CARE, FEWEST, MIXES, WORTH, Mix, policy
from rdi.benchmarks.inference import TARGETS as FLOORS
from rdi.benchmarks.timing import Answer, Times, Work, parts, race, row
from rdi.compiled import compiled_static, warm_up
from rdi.emulation import emulated
from rdi.exits import MultiExitNet
from rdi.exporting.policies import decision_of
from rdi.records import BenchRow
from rdi.thresholds import ThresholdPolicy

STATIC, STATIC_COMPILED = "static", "static, compiled"
HALF, HALF_COMPILED = "static, bf16", "static, compiled, bf16"
ADAPTIVE, ADAPTIVE_COMPILED, STREAM = "adaptive", "adaptive, compiled", "stream"
STATIC_ONNX, RUNNER = f"static, {ONNXRUNTIME}", f"{ONNXRUNTIME} runner"
STATIC_GRAPH, ONE_GRAPH = f"static, {ONNXRUNTIME}, one graph", f"{ONNXRUNTIME}, one graph"
COMPARED = (
    (STATIC_COMPILED, STATIC),
    (ADAPTIVE, STATIC),
    (ADAPTIVE_COMPILED, STATIC_COMPILED),
    (STREAM, ADAPTIVE),
    (STATIC_ONNX, STATIC),
    (RUNNER, ADAPTIVE),
    (RUNNER, STATIC_ONNX),
    (ONE_GRAPH, STATIC_GRAPH),
    (f"static, {OPENVINO}", STATIC),
    (f"{OPENVINO} runner", ADAPTIVE),
    (f"{OPENVINO} runner", f"static, {OPENVINO}"),
)
"""Contestants and what each is compared with. Static: the backbone without early exits."""
TARGETS = {STREAM: 1.05, RUNNER: 1.0}
"""Least ratio against adaptive inference on the CPU at 256 images of an even mix."""
HALF_TARGET = 1.4
"""Least ratio of the compiled network in bfloat16 to the eager one, at 256 images on the CPU."""
BATCHES = 4
"""Batches that a stream is given at least, where there are so many images."""


def rows(
    model: MultiExitNet,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    repeats: int,
    at_least: float = 0.0,
    mixes: Mapping[str, Mix] = MIXES,
) -> list[BenchRow]:
    """Measure, per batch size and exit mix, every contestant: time of what it replaces / its own.

    model: in eval mode, float32; BatchNorm is folded and the memory format channels-last for all contestants.
    x: _NCHW in [0, 1], at least max(batch_sizes) images, on the model's device.
    repeats, at_least: rounds and seconds per mix, at least.
    mixes: exit shares by name.
    Values: images_per_second, macs_saved against the static network, and time_saved; p50_ms and p99_ms of the time from
        a batch to its answer (CPU only); joules_per_image where the machine shows them. Rows of other runtimes are
        left out where they are not installed, and on a GPU.
    """
    net = Engine().copy(model).net
    static = compiled_static(net)
    loaded = None if x.is_cuda else Exported.of(net, policy(net, x[:FEWEST], 1.0), x)
    found = []
    for size in batch_sizes:
        images = x[: max(size, FEWEST, BATCHES * size)].to(memory_format=torch.channels_last)
        warm_up(static, images[:size])
        for mix, shares in mixes.items():
            chosen = policy(net, images, shares)
            floor = None if x.is_cuda else FLOORS.get(("cpu", size, mix))
            rounds = repeats if floor is None else CARE * repeats
            found += _rows(net, static, loaded, images, size, mix, chosen, rounds, at_least, floor)
        if not emulated(x.device):
            found.append(_half(net, images, size, repeats, at_least))
    return found


class _Waits:
    """Seconds from each batch to its answer."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def one_by_one(self, name: str, answer: Answer, batches: Sequence[torch.Tensor]) -> list[Work]:
        """Return work that answers the batches one after the other, each timed."""
        seconds = self.seconds.setdefault(name, [])

        def timed(batch: torch.Tensor) -> None:
            began = time.perf_counter()
            answer(batch)
            seconds.append(time.perf_counter() - began)

        return parts(timed, batches)

    def stream(self, name: str, predictor: AdaptivePredictor, batches: Sequence[torch.Tensor]) -> Callable[[], None]:
        """Return work that streams the batches; each is timed from when it is taken."""
        seconds = self.seconds.setdefault(name, [])

        def work() -> None:
            taken: list[float] = []

            def source() -> Iterator[torch.Tensor]:
                for batch in batches:
                    taken.append(time.perf_counter())
                    yield batch

            for number, _ in enumerate(predictor.stream(source())):
                seconds.append(time.perf_counter() - taken[number])

        return work


def _without_exits(net: MultiExitNet, static: torch.nn.Module) -> tuple[Answer, Answer]:
    """Return what answers a batch by the last exit of `net`, and by `static`, the same compiled."""

    @torch.inference_mode()
    def plain(batch: torch.Tensor) -> None:
        net.logits_at(batch, [net.exits - 1]).argmax(dim=2)

    @torch.no_grad()
    def compiled(batch: torch.Tensor) -> None:
        static(batch).argmax(dim=1)

    return plain, compiled


def _rows(
    net: MultiExitNet,
    static: torch.nn.Module,
    loaded: Exported | None,
    x: torch.Tensor,
    size: int,
    mix: str,
    chosen: ThresholdPolicy,
    repeats: int,
    at_least: float,
    floor: float | None,
) -> list[BenchRow]:
    batches = x.split(size)
    eager = AdaptivePredictor(net, chosen)
    fast = AdaptivePredictor(net, chosen, compile=True)
    waits = _Waits()

    plain, plain_compiled = _without_exits(net, static)
    answers: dict[str, Answer] = {
        STATIC: plain,
        STATIC_COMPILED: plain_compiled,
        ADAPTIVE: eager,
        ADAPTIVE_COMPILED: fast,
    }
    if loaded is not None:
        for runtime, (adaptive, whole) in loaded.runners.items():
            adaptive.policy["decision"], adaptive.policy["combine"] = decision_of(chosen)
            answers |= {f"static, {runtime}": _on_arrays(whole), f"{runtime} runner": _on_arrays(adaptive)}
        if size == 1:
            adaptive_graph, static_graph = loaded.graphs(chosen)
            answers |= {STATIC_GRAPH: _on_arrays(static_graph), ONE_GRAPH: _on_arrays(adaptive_graph)}
    contestants: dict[str, Work | Sequence[Work]] = {
        name: waits.one_by_one(name, answer, batches) for name, answer in answers.items()
    }
    if len(batches) > 1:  # one alone has no others to wait for
        contestants[STREAM] = waits.stream(STREAM, eager, batches)
    times = race(contestants, repeats=repeats, device=x.device, at_least=at_least)
    spent = torch.cat([eager(batch).macs for batch in batches]).double().mean()
    saved = 1 - float(spent) / eager.costs(x.shape[1:]).macs_plain
    even = mix == "even" and size == 256 and not x.is_cuda
    return [
        _row(
            times, waits, (name, against), f"{name}, {mix}", x, size, saved, TARGETS.get(name) if even else None, floor
        )
        for name, against in COMPARED
        if name in contestants
    ]


def _half(net: MultiExitNet, x: torch.Tensor, size: int, repeats: int, at_least: float) -> BenchRow:
    """Measure the compiled network without early exits in bfloat16, weights included, against the eager one."""
    half = deepcopy(net).to(torch.bfloat16)
    images = x.to(torch.bfloat16, memory_format=torch.channels_last)
    static = compiled_static(half)
    warm_up(static, images[:size])
    waits = _Waits()

    plain, plain_compiled = _without_exits(half, static)
    batches = images.split(size)
    contestants = {
        HALF: waits.one_by_one(HALF, plain, batches),
        HALF_COMPILED: waits.one_by_one(HALF_COMPILED, plain_compiled, batches),
    }
    times = race(contestants, repeats=repeats, device=x.device, at_least=at_least)
    target = HALF_TARGET if size == 256 and not x.is_cuda else None
    return _row(times, waits, (HALF_COMPILED, HALF), HALF_COMPILED, x, size, 0.0, target, None)


def _on_arrays(runner: Callable[[np.ndarray], object]) -> Answer:
    return lambda batch: runner(batch.contiguous().numpy())


def _row(
    times: Times,
    waits: _Waits,
    pair: tuple[str, str],
    name: str,
    x: torch.Tensor,
    size: int,
    saved: float,
    target: float | None,
    floor: float | None,
) -> BenchRow:
    """Make the row of a pair of COMPARED.

    saved: share of the MACs that early exits save.
    target: least ratio; floor: least time saved / MACs saved, of early exits against their own static network.
    """
    contestant, against = pair
    speed = times.ratio(against, contestant)
    values = {"images_per_second": len(x) / times.median(contestant), "rounds": times.rounds}
    if not x.is_cuda:  # there, calls return before the answer is
        first = len(x.split(size))  # of the round that warms up
        p50, p99 = np.percentile(waits.seconds[contestant][first:], [50, 99])
        values |= {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}
    if (used := times.energy(contestant)) is not None:
        values["joules_per_image"] = used / len(x)
    if not contestant.startswith(STATIC):
        values |= {"macs_saved": saved, "time_saved": 1 - 1 / speed.median}
        if against.startswith(STATIC):
            target = None
            if saved >= WORTH:
                values["time_saved_per_macs_saved"] = (1 - 1 / speed.median) / saved
                target = None if floor is None else 1 / (1 - floor * saved)  # the ratio at which it is reached
    return row("deploy", name, size, against, speed, target, **values)
