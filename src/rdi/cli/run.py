"""`rdi run`: the stages one after the other on one composed config; what is finished is not done again."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig

from rdi.cli import _assemble, _edge, _hydra, _stages, attack, evaluate, pareto, train
from rdi.errors import UserError
from rdi.records import RunFolder

logger = logging.getLogger("rdi")
STAGES = ("train", "attack", "evaluate", "pareto")


def run(cfg: DictConfig) -> None:
    """Run the stages that `cfg` lists, in their natural order."""
    config = _edge.resolved(cfg)
    chosen = _edge.choices()
    if unknown := [stage for stage in config["stages"] if stage not in STAGES]:
        raise UserError(f"stages may be {', '.join(STAGES)}; got {unknown[0]!r}")
    suite = attack.build_suite(config["suite"])  # before the training, so that a typo costs nothing
    folder = RunFolder(config["run"] or train.default_name(config, chosen))
    if "train" in config["stages"]:
        folder = train_once(folder, config, chosen)
    if "attack" in config["stages"]:
        manifest = folder.read_finished()
        _hydra.log_to(folder.log)
        where = _edge.device(config["device"], config["threads"])
        _, net = _assemble.load_run(folder, where)
        _stages.run_suite(
            folder,
            net,
            _assemble.run_data(folder, manifest),
            suite,
            where,
            seed=manifest.seed,
            batch_size=config["batch_size"],
            samples=config["samples"],
            overwrite=False,
        )
    if "evaluate" in config["stages"]:
        evaluate.evaluate(folder, config, chosen["threshold"])
    if "pareto" in config["stages"]:
        pareto.draw([folder], {"name": folder.name, "ratios": config["ratios"], "tracking": config["tracking"]})


def train_once(folder: RunFolder, config: dict[str, Any], chosen: dict[str, str]) -> RunFolder:
    """Train unless the folder holds this very experiment, finished. Raises UserError when it holds another one."""
    if folder.finished() and not config["overwrite"]:
        stored = folder.read_finished()
        if stored.identity != _edge.identity(config):
            raise UserError(
                f"{folder.path} is finished with other settings ({train.first_difference(stored.config, config)}): "
                "choose another run=..., or replace it with overwrite=true"
            )
        logger.info("%s is trained already", folder.path)
        return folder
    return train.train({**config, "run": str(folder.path)}, chosen)
