"""`rdi train`: train one network into a run folder, or go on with one."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.runs import rank_group
from rdi.runs.identity import default_name
from rdi.runs.outcome import Outcome
from rdi.runs.train import train


def run(cfg: DictConfig) -> Outcome:
    """Train what `cfg` describes; a job of a sweep skips its very experiment where it is finished."""
    _edge.refuse_foreign_radius(cfg, _edge.overrides())
    config, chosen, changed = _edge.resolved(cfg), _edge.choices(), _edge.changed()
    folder = RunFolder(config["run"] or default_name(config, chosen))
    with folder.hold():
        if config["run"] and not changed and not folder.started() and not folder.foreign():
            raise UserError(
                f"there is no run {folder.path} to go on with; to train one say what, for example `rdi train "
                f"run={folder.path} data=digits backbone=smallcnn`"
            )
        skip = _edge.multirun() or rank_group.restarted()
        root = _edge.typed_root(cfg)
        trained = train(folder, config, chosen, changed=changed, skip_finished=skip, data_root=root)
    return Outcome(str(folder.path), skipped=not trained)
