"""`rdi attack`: attack a finished run with a suite, or with one attack, and store every exit's logits."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from rdi.attacks.base import Attack
from rdi.banks import LogitsBank
from rdi.checks import choice
from rdi.cli import _edge, _hydra
from rdi.cli._outcome import Outcome
from rdi.config import build
from rdi.folders import RunFolder
from rdi.records import Manifest
from rdi.runs.attack import Crafting, run_suite
from rdi.runs.folder import Run
from rdi.tracking import Wandb


def run(cfg: DictConfig) -> Outcome:
    """Attack the run that `cfg` names."""
    opened = Run.open(cfg.run, cfg.device, threads=cfg.threads)
    folder, manifest = opened.folder, opened.manifest
    fill_threat(cfg, manifest)
    config = _edge.resolved(cfg)
    chosen = _edge.choices()
    split = choice("split", config["split"], ("test", "validation", "calibration"))
    single = config["attack"] is not None
    built = build_suite({chosen["attack"]: config["attack"]} if single else config["suite"], single=single)
    tracking: Wandb = build(config["tracking"], "tracking")
    opened.data_root = _edge.typed_root(config)
    with folder.hold():
        _hydra.log_to(folder.log)
        opened.load()
        seed = manifest.seed if config["seed"] is None else config["seed"]
        how = crafting(config, seed)
        with tracking.start(folder.path, "run", manifest.config) as log:
            run_suite(opened, built, how, config["samples"], config["thresholds"], split)
            log.summary(summary(folder, split))
    return Outcome(str(folder.path), skipped=False)


def summary(folder: RunFolder, split: str) -> dict[str, Any]:
    """Return what tracking is told of a split's banks: accuracy per exit, images, seconds, largest perturbation."""
    values: dict[str, Any] = {}
    for name, path in folder.banks(split).items():
        bank = LogitsBank.load(path)
        hits = (bank.logits.argmax(dim=2) == bank.labels[:, None]).double().mean(dim=0)
        facts = {"exit_accuracy": hits.tolist()} | {
            key: getattr(bank.manifest, key) for key in ("samples", "seconds", "linf")
        }
        values |= {f"attack/{split}/{name}/{key}": value for key, value in facts.items()}
    return values


def crafting(config: dict[str, Any], seed: int) -> Crafting:
    """Build how attacks are to be computed out of the config."""
    return Crafting(
        seed=seed,
        batch_size=config["batch_size"],
        engine=build(config["engine"], "engine"),
        overwrite=config["overwrite"],
        label=config["label"],
    )


def fill_threat(cfg: DictConfig, manifest: Manifest) -> None:
    """Fill in what the user left open, as the run was trained."""
    trained = manifest.config["threat"]
    for key in ("eps", "step_size", "test_steps"):
        if cfg.threat[key] is None:
            cfg.threat[key] = trained[key]
    if "steps" in cfg.threat and cfg.threat.steps is None:
        cfg.threat.steps = cfg.threat.test_steps


def build_suite(nodes: dict[str, dict[str, object]], *, single: bool = False) -> dict[str, Attack]:
    """Name -> attack, under the name that the attack goes by. single: nodes hold the option `attack`, not `suite`."""
    built: dict[str, Attack] = {
        name: build(node, "attack" if single else f"suite.{name}") for name, node in nodes.items()
    }
    return {attack.label(name): attack for name, attack in built.items()}
