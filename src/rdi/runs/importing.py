"""Turn weights that were trained elsewhere into a finished run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from rdi.checks import directory
from rdi.config import build
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.importing import official_state, our_names
from rdi.records import Manifest, read, write
from rdi.runs import beginning, datasets, devices, lineage, networks, preflight, provenance, weights
from rdi.runs.evaluate import calibrate
from rdi.runs.folder import Run
from rdi.runs.foreign import import_state, read_state
from rdi.storage import sha256, write_bytes

logger = logging.getLogger("rdi")


def import_run(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """Import the file that `config` names as a run, unless there is one already.

    config: resolved, of `rdi import`; chosen: config group -> choice. The recipe that data sets and networks bring
    along is left out: nothing is trained. Raises UserError for a folder that is taken, and a file that does not fit.
    """
    config, chosen = _without(config, "optim"), _without(chosen, "optim")
    folder = RunFolder(config["run"])
    if folder.foreign():
        raise UserError(f"{folder.path} exists and is not a run folder: choose another run=...")
    with folder.hold():
        if folder.finished() and not config["overwrite"]:
            raise UserError(f"{folder.path} exists already: choose another run=..., or replace it with overwrite=true")
        if folder.started() and not config["overwrite"] and read(folder.manifest, Manifest).command != "import":
            raise UserError(f"{folder.path} is an unfinished training: choose another run=..., or use overwrite=true")
        import_file(folder, config, chosen)


def _without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != key}


def import_file(folder: RunFolder, config: dict[str, Any], chosen: dict[str, str]) -> None:
    """Check everything, then write the run; it is done when all of it is there."""
    if (config["checkpoint"] is None) == (config["weights"] is None):
        raise UserError(
            "give weights=FILE (a state_dict of this backbone and exits, safetensors or torch), or checkpoint=FILE of "
            "the authors' released ResNets; one of them"
        )
    theirs = config["checkpoint"] is not None
    file = directory("checkpoint" if theirs else "weights", config["checkpoint" if theirs else "weights"])
    device = devices.select(config["device"], config["threads"])
    state = official_state(file) if theirs else read_state(file)
    source = datasets.source(config)
    if source.calibration_from != "test":
        raise UserError(
            "imported networks have seen all training images of their data: hold the calibration images out of the "
            "test images with data.calibration_from=test"
        )
    data = source.load()
    net = networks.model(config, data.shape, data.classes, config["seed"])
    import_state(net, our_names(net, state) if theirs else state)
    rule = build(config["threshold"], "threshold")
    preflight.thresholds(net, rule, data, device)
    begun = beginning.begin("import", folder, config, chosen, net, data, device, {file.name: sha256(file)})
    lineage.say(data)
    weights.save_weights(folder.checkpoint, net)
    manifest = replace(begun, ended=provenance.now(), checkpoint_sha256=sha256(folder.checkpoint))
    write(folder.manifest, manifest)
    calibrate(
        Run.of(folder, manifest, net.to(device).eval(), data, device), rule, chosen["threshold"], config["threshold"]
    )
    write_bytes(folder.done, b"")
    logger.info("%s: imported %s. Next: rdi attack run=%s", folder.path, file.name, folder.path)
