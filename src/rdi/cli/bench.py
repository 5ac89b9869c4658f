"""`rdi bench`: measure attacks, training and inference on this machine, as ratios to plain baselines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from rdi import records, storage
from rdi.benchmarks import accuracy, attacks, deploy, inference, roofline, thresholds, training
from rdi.checks import choice, integer
from rdi.cli import _edge
from rdi.cli._console import say
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import report_folder
from rdi.records import BenchRecord, BenchRow
from rdi.report import benchmarks
from rdi.runs import devices, networks, provenance
from rdi.runs.folder import Run
from rdi.seeds import generator

logger = logging.getLogger("rdi")
GROUPS = ("attacks", "torchattacks", "memory", "training", "roofline", "inference", "deploy", "thresholds", "accuracy")
STEADY = 4.0
"""Seconds per row of inference, at least: three rounds of one batch would measure the machine's moods."""
QUICK = {"steps": 2, "batch_size": 8, "repeats": 2, "batch_sizes": [32]}
POINTS = 1000
SETTLING = 20


def run(cfg: DictConfig) -> None:
    """Measure what `cfg` asks for, print the tables and store the record."""
    _edge.untrained()
    config, chosen = _edge.resolved(cfg), _edge.choices()
    config.pop("optim"), chosen.pop("optim", None)
    if config["quick"]:
        typed = {word.split("=")[0] for word in _edge.overrides()}
        config |= {name: value for name, value in QUICK.items() if name not in typed}
    for name in ("steps", "batch_size", "repeats", "samples"):
        integer(name, config[name], 1)
    for size in config["batch_sizes"]:
        integer("batch_sizes", size, 1)
    wanted = [choice("rows", name, GROUPS) for name in config["rows"]]
    device = devices.select(config["device"], config["threads"])
    opened = None if config["run"] is None else Run.open(config["run"], config["device"], threads=config["threads"])
    if opened is None:
        net, shape, chosen_of = fresh(config, device), shape_of(config), chosen
    else:
        opened.data_root = _edge.typed_root(cfg)
        net, shape, chosen_of = opened.network, opened.manifest.data.shape, opened.manifest.choices
    if opened is None or config["quick"]:
        wanted = [name for name in wanted if name != "accuracy"]
    out = report_folder(config["name"])
    began, started = time.perf_counter(), provenance.now()
    if not wanted:
        raise UserError(f"rows leaves nothing to measure: choose of {', '.join(GROUPS)} (accuracy: with run=... only)")
    rows: list[BenchRow] = []
    for name in wanted:
        logger.info("measuring %s", name)
        try:
            rows += measure(name, net, opened, config, shape, device)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped while measuring {name}; what was measured before is in {out}") from None
        record = BenchRecord(
            environment=provenance.environment(device),
            started=started,
            seconds=time.perf_counter() - began,
            config=config,
            choices=chosen_of,
            shape=shape,
            exits=net.exits,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            repeats=config["repeats"],
            rows=tuple(rows),
        )
        records.write(out / "bench.json", record)
        text = benchmarks.render(record, "github") + "\n"
        storage.write_bytes(out / "table.md", text.encode())
    say(benchmarks.render(record))
    say(f"\nrecord: {out / 'bench.json'}\ntable:  {out / 'table.md'}")


def fresh(config: dict[str, Any], device: torch.device) -> MultiExitNet:
    """An untrained network of the config, with BatchNorm statistics that fit its random weights."""
    shape = shape_of(config)
    net = networks.model(config, shape, integer("classes", config["classes"], 2), config["seed"]).to(device)
    x = images(64, shape, config["seed"], device)
    with torch.no_grad():
        for _ in range(SETTLING):
            net.train()(x)
    return net.eval()


def shape_of(config: dict[str, Any]) -> tuple[int, int, int]:
    """CHW of a fresh network's images. Raises UserError for anything else."""
    if len(config["shape"]) != 3:
        raise UserError(f"shape must be three whole numbers CHW, got {config['shape']}")
    channels, height, width = (integer("shape", n, 1) for n in config["shape"])
    return channels, height, width


def images(count: int, shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    """Uniform random x_NCHW in [0, 1]."""
    return torch.rand(count, *shape, generator=generator(device, seed, "bench"), device=device)


def measure(
    name: str,
    net: MultiExitNet,
    opened: Run | None,
    config: dict[str, Any],
    shape: tuple[int, ...],
    device: torch.device,
) -> list[BenchRow]:
    """The rows of one group."""
    repeats, seed = config["repeats"], config["seed"]
    threat = config["threat"] if opened is None else opened.manifest.config["threat"]
    classes = net(images(1, shape, seed, device)).shape[2]

    def subject() -> attacks.Subject:
        x = images(config["batch_size"], shape, seed, device)
        y = torch.randint(classes, (len(x),), generator=generator(device, seed, "labels"), device=device)
        return attacks.Subject(net, x, y, threat["eps"], threat["step_size"], config["steps"], repeats)

    def against_torchattacks() -> list[BenchRow]:
        try:
            return attacks.against_torchattacks(subject())
        except ImportError:
            logger.warning("torchattacks is not installed, its rows are left out: pip install 'rdi[bench]'")
            return []

    def strength() -> list[BenchRow]:
        assert opened is not None, "asked for only with a run"
        ball = {"eps": threat["eps"], "step_size": threat["step_size"]}
        split = opened.data.test.sample(config["samples"]).to(device)
        return accuracy.rows(net, opened.policy(), split, ball, config["steps"], config["batch_size"])

    groups: dict[str, Callable[[], list[BenchRow]]] = {
        "attacks": lambda: attacks.against_textbook(subject()),
        "torchattacks": against_torchattacks,
        "memory": lambda: attacks.memory(subject()),
        "training": lambda: training.rows(subject()),
        "roofline": lambda: roofline.rows(subject()),
        "inference": lambda: inference.rows(
            net,
            images(max(inference.FEWEST, *config["batch_sizes"]), shape, seed, device),
            config["batch_sizes"],
            repeats,
            0.0 if config["quick"] else STEADY,
        ),
        "deploy": lambda: deploy.rows(
            net,
            images(max(inference.FEWEST, *config["batch_sizes"]), shape, seed, device),
            config["batch_sizes"],
            repeats,
            0.0 if config["quick"] else STEADY,
        ),
        "thresholds": lambda: [thresholds.row(net.exits, POINTS, repeats, attacks=count) for count in (0, 1)],
        "accuracy": strength,
    }
    return groups[name]()
