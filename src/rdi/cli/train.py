"""`rdi train`: train one network into a run folder, or go on with one."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from rdi.cli import _edge, _hydra, _ranks
from rdi.cli._outcome import Outcome
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.runs import train as stage
from rdi.runs.identity import default_name, outside_identity


def run(cfg: DictConfig) -> Outcome:
    """Train what `cfg` describes."""
    config, chosen = _edge.resolved(cfg), _edge.choices()
    folder = RunFolder(config["run"] or default_name(config, chosen))
    with folder.hold():
        if config["run"] and not changed() and not folder.started() and not folder.foreign():
            raise UserError(
                f"there is no run {folder.path} to go on with; to train one say what, for example `rdi train "
                f"run={folder.path} data=digits backbone=smallcnn`"
            )
        trained = train(folder, config, chosen)
    return Outcome(str(folder.path), skipped=not trained)


def train(
    folder: RunFolder, config: dict[str, Any], chosen: dict[str, str], check: stage.Check = lambda net, data: None
) -> bool:
    """Train as this job says (rdi.runs.train); a job of a sweep skips its very experiment where it is finished."""
    return stage.train(
        folder,
        config,
        chosen,
        changed=changed(),
        skip_finished=_edge.multirun() or _ranks.restarted(),
        data_root=_edge.typed_root(config),
        log_to=_hydra.log_to,
        check=check,
        ranks=_ranks.current(),
    )


def changed() -> bool:
    """Return whether the user typed something of what is trained."""
    return any(not outside_identity(word.split("=")[0].lstrip("+~")) for word in _edge.overrides())
