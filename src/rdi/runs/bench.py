"""Measure attacks, training and inference on this machine, as ratios to plain baselines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from rdi import records, storage
from rdi.benchmarks import accuracy, attacks, deploy, inference, ranks, roofline, thresholds, training
from rdi.checks import LINF, choice, integer
from rdi.emulation import emulated
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import report_folder
from rdi.records import BenchRecord, BenchRow
from rdi.report import benchmarks
from rdi.runs import devices, networks, provenance
from rdi.runs.folder import Run
from rdi.runs.options import Bench
from rdi.seeds import generator
from rdi.threats import AT, CLEAN, configured

logger = logging.getLogger("rdi")
GROUPS = (
    *("attacks", "torchattacks", "memory", "training", "ranks"),
    *("roofline", "inference", "deploy", "thresholds", "accuracy"),
)
STEADY = 4.0
"""Seconds per row of inference, at least: three rounds of one batch would measure the machine's moods."""
QUICK = {"steps": 2, "batch_size": 8, "repeats": 2, "batch_sizes": [32]}
LARGEST_STREAMED = 256
"""Images of a batch up to which a stream is given deploy.BATCHES of them."""
POINTS = 1000
SETTLING = 20


KNOWN = ("backbone", "exits", "data", "threat", "shape", "classes")
"""Options, or groups of them, that say what a fresh network is; a run knows its own."""


def settle(options: Bench, typed: set[str]) -> None:
    """With quick=true, lower what was not typed. Raises UserError for what was, and changes nothing beside run=...

    typed: names of options.
    """
    for name in sorted(typed - {"data.root"}):
        if options.run is not None and name.partition(".")[0] in KNOWN:
            raise UserError(f"{name} changes nothing beside run=..., which is measured as it is: leave one of them out")
    for name, value in QUICK.items():
        if options.quick and name not in typed:
            setattr(options, name, value)


def measure_all(options: Bench, config: dict[str, Any], choices: dict[str, str], run: Run | None) -> str:
    """Measure what the options ask for on a fresh network, or that of `run`, and store the record; tables of it.

    config: the same, resolved, for the record; choices: config group -> choice. Raises UserError for values out of
    range, and where nothing is left to measure.
    """
    config = {name: getattr(options, name) if name in QUICK else config[name] for name in config if name != "optim"}
    for name in ("steps", "batch_size", "repeats", "samples"):
        integer(name, config[name], 1)
    if not options.batch_sizes:
        raise UserError("batch_sizes is empty: give one or several, as batch_sizes=[1,256]")
    for size in options.batch_sizes:
        integer("batch_sizes", size, 1)
    for name in ("batch_sizes", "rows"):
        given = list(getattr(options, name))
        if again := [one for k, one in enumerate(given) if one in given[:k]]:
            raise UserError(f"{name} names {again[0]} twice: give it once")
    wanted = [choice("rows", name, GROUPS) for name in options.rows]
    without = {
        "accuracy": (run is None or options.quick, "is measured with run=... and quick=false only"),
        "deploy": (run is not None and run.network.gated, "measures static graphs, and this network has gates"),
    }
    left_out = {name: why for name, (absent, why) in without.items() if absent and name in wanted}
    if not (wanted := [name for name in wanted if name not in left_out]):
        raise UserError(
            f"rows leaves nothing to measure: choose of {', '.join(GROUPS)}"
            + "".join(f" ({name} {why})" for name, why in left_out.items())
        )
    for name, why in left_out.items():
        logger.info("rows: %s is left out, it %s", name, why)
    if options.thresholds is not None and run is None:
        raise UserError("thresholds are stored with a run: give run=... too")
    if run is not None and {"inference", "deploy", "accuracy"} & set(wanted):
        run.policy(options.thresholds)  # a name that is not stored is refused before anything is measured
    threat = asdict(options.threat) if run is None else run.manifest.config["threat"]
    if (ball := configured(threat)).norm != LINF:
        raise UserError(f"rdi bench compares attacks in L-infinity, and the threat model is {ball}: choose another run")
    out = report_folder(options.name)
    device = devices.select(options.device, options.threads)
    if emulated(device):
        logger.warning("this processor has no bf16 instructions: rows in bf16 are left out")
    if run is None:
        choices = {name: chosen for name, chosen in choices.items() if name != "optim"}
        net, shape = fresh(options, config, device), shape_of(options)
    else:
        net, shape, choices = run.network, run.manifest.data.shape, run.manifest.choices
    began, started = time.perf_counter(), provenance.now()
    rows: list[BenchRow] = []
    for name in wanted:
        logger.info("measuring %s", name)
        try:
            rows += measure(name, net, run, options, shape, device, threat)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped while measuring {name}; what was measured before is in {out}") from None
        record = BenchRecord(
            environment=provenance.environment(device),
            started=started,
            seconds=time.perf_counter() - began,
            config=config,
            choices=choices,
            shape=shape,
            exits=net.exits,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            repeats=options.repeats,
            rows=tuple(rows),
        )
        records.write(out / "bench.json", record)
        text = benchmarks.render(record, "github") + "\n"
        storage.write_bytes(out / "table.md", text.encode())
    return f"{benchmarks.render(record)}\n\nrecord: {out / 'bench.json'}\ntable:  {out / 'table.md'}"


def fresh(options: Bench, config: dict[str, Any], device: torch.device) -> MultiExitNet:
    """Return an untrained network of the config, with BatchNorm statistics that fit its random weights."""
    shape = shape_of(options)
    net = networks.model(config, shape, integer("classes", options.classes, 2), options.seed).to(device)
    x = images(64, shape, options.seed, device)
    with torch.no_grad():
        for _ in range(SETTLING):
            net.train()(x)
    return net.eval()


def shape_of(options: Bench) -> tuple[int, int, int]:
    """CHW of a fresh network's images. Raises UserError for anything else."""
    if len(options.shape) != 3:
        raise UserError(f"shape must be three whole numbers CHW, got {options.shape}")
    channels, height, width = (integer("shape", n, 1) for n in options.shape)
    return channels, height, width


def images(count: int, shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    """Uniform random x_NCHW in [0, 1]."""
    return torch.rand(count, *shape, generator=generator(device, seed, "bench"), device=device)


def mixes(exits: int, run: Run | None, thresholds: str | None) -> dict[str, inference.Mix]:
    """Return the exit mixes to measure at: made-up ones, and those of a run's clean images and under slowdown.

    exits: of the network; with one there is one mix.
    thresholds: name of the run's stored thresholds; None: those of its training.
    """
    if exits == 1:
        return {name: mix for name, mix in inference.MIXES.items() if mix is None}
    found = dict(inference.MIXES)
    if run is None:
        return found
    policy, banks = run.policy(thresholds), run.folder.banks("test")
    for name in (CLEAN, next((name for name in banks if name.partition(AT)[0] == "slowdown"), "slowdown")):
        if name not in banks:
            logger.info("%s has no bank %r: no row for its exit mix", run.path, name)
            continue
        chosen = policy.choose(run.bank(name).logits)
        found[f"as {name}"] = (torch.bincount(chosen, minlength=exits).double() / len(chosen)).tolist()
    return found


def measure(
    name: str,
    net: MultiExitNet,
    run: Run | None,
    options: Bench,
    shape: tuple[int, ...],
    device: torch.device,
    threat: dict[str, Any],
) -> list[BenchRow]:
    """Measure the rows of one group. threat: options of the threat model, in L-infinity."""
    repeats, seed = options.repeats, options.seed
    classes = net(images(1, shape, seed, device)).shape[2]

    def subject() -> attacks.Subject:
        x = images(options.batch_size, shape, seed, device)
        y = torch.randint(classes, (len(x),), generator=generator(device, seed, "labels"), device=device)
        return attacks.Subject(net, x, y, threat["eps"], threat["step_size"], options.steps, repeats)

    def serving() -> tuple[MultiExitNet, torch.Tensor, list[int], int, float, dict[str, inference.Mix]]:
        count = max(inference.FEWEST, *options.batch_sizes)
        if name == "deploy":
            count = max(count, *(deploy.BATCHES * size for size in options.batch_sizes if size <= LARGEST_STREAMED))
        x = images(count, shape, seed, device)
        at_least = 0.0 if options.quick else STEADY
        return net, x, options.batch_sizes, repeats, at_least, mixes(net.exits, run, options.thresholds)

    def against_torchattacks() -> list[BenchRow]:
        try:
            return attacks.against_torchattacks(subject())
        except ImportError:
            logger.warning("torchattacks is not installed, its rows are left out: pip install 'rdi[bench]'")
            return []

    def strength() -> list[BenchRow]:
        assert run is not None, "asked for only with a run"
        ball = {"eps": threat["eps"], "step_size": threat["step_size"]}
        split = run.data.test.sample(options.samples).to(device)
        return accuracy.rows(net, run.policy(options.thresholds), split, ball, options.steps, options.batch_size)

    groups: dict[str, Callable[[], list[BenchRow]]] = {
        "attacks": lambda: attacks.against_textbook(subject()),
        "torchattacks": against_torchattacks,
        "memory": lambda: attacks.memory(subject()),
        "training": lambda: training.rows(subject()),
        "ranks": lambda: ranks.rows(subject()),
        "roofline": lambda: roofline.rows(subject()),
        "inference": lambda: inference.rows(*serving()),
        "deploy": lambda: deploy.rows(*serving()),
        "thresholds": lambda: [thresholds.row(net.exits, POINTS, repeats, attacks=count) for count in (0, 1)],
        "accuracy": strength,
    }
    return groups[name]()
