"""`rdi import`: the authors' released weights as a finished run, for attack, evaluate and pareto."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from rdi import macs
from rdi.cli import _assemble, _edge, _stages, train
from rdi.errors import UserError
from rdi.importing import import_resnet, official_state
from rdi.records import Costs, Manifest, RunFolder, atomic, sha256, write

logger = logging.getLogger("rdi")


def run(cfg: DictConfig) -> None:
    """Import the file that `cfg` names."""
    config = _edge.resolved(cfg)
    chosen = _edge.choices()
    folder = RunFolder(config["run"])
    if folder.path.exists() and config["overwrite"] and folder.started():
        _stages.remove_run(folder)
    if folder.path.exists() and any(folder.path.iterdir()):
        raise UserError(f"{folder.path} exists already: choose another run=..., or replace it with overwrite=true")
    file = Path(config["checkpoint"]).expanduser()
    where = _edge.device(config["device"], config["threads"])
    state = official_state(file)
    began = _edge.now()
    data = _assemble.source(config).load()
    net = _assemble.model(config, data.shape, data.classes, config["seed"])
    import_resnet(net, state)
    rule = _edge.build(config["threshold"])
    _assemble.save_weights(folder.checkpoint, net, {"format": "pt", "which": "imported"})
    train.save_splits(folder, data.indices())
    manifest = Manifest(
        command="import",
        config=config,
        choices=chosen,
        identity=_edge.identity(config),
        seed=config["seed"],
        environment=_edge.environment(where),
        data=_assemble.data_info(data),
        exits=net.exits,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        costs=Costs(**asdict(macs.count(net, data.shape))),
        inputs={file.name: sha256(file)},
        started=began,
        ended=_edge.now(),
        seconds=None,
        selection=None,
        checkpoint_sha256=sha256(folder.checkpoint),
    )
    write(folder.manifest, manifest)
    atomic(folder.done, lambda stream: None)
    _stages.calibrate(folder, net.to(where).eval(), data, rule, chosen["threshold"], config["threshold"], where)
    logger.info("%s: imported %s. Next: rdi attack run=%s", folder.path, file.name, folder.path)
