"""Several `rdi run` jobs that are no grid, through whatever Hydra launcher was chosen on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict, read_write

from rdi.cli import _edge, _hydra, _schema
from rdi.report.hints import settled


def config(options: Sequence[str]) -> dict[str, Any]:
    """The resolved config of an `rdi run` with these options, as they would be typed.

    Raises UserError (or Hydra's own) for options that do not fit.
    """
    cfg = _schema.validated(_plain(_compose(settled(options), RunMode.RUN)))
    _edge.refuse_foreign_radius(cfg, options)
    return _edge.resolved(cfg)


def launch(jobs: Sequence[Sequence[str]]) -> list[Exception | None]:
    """Run `rdi run` with each of these options; what each failed of, None for one that ended well.

    A signal ends all of them. The launcher and its options are those of this command (hydra/launcher=joblib and so on).
    """
    if not jobs:
        return []
    # a callback for the whole sweep is the business of `rdi run -m`; here jobs are all there is
    from hydra._internal.callbacks import Callbacks

    typed = [word for word in HydraConfig.get().overrides.hydra if not word.startswith("hydra.mode=")]
    composed = _compose([*typed, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "jobs are started from within a command"
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(composed)),
        task_function=_hydra.task("run"),
        config=composed,
    )
    returned = launcher.launch([settled(job) for job in jobs], initial_job_idx=0)
    return [None if job.status == JobStatus.COMPLETED else job._return_value for job in returned]


def _compose(options: list[str], mode: RunMode) -> DictConfig:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "configs are composed from within a command"
    return hydra.compose_config(config_name="run", overrides=options, run_mode=mode)


def _plain(config: DictConfig) -> DictConfig:
    """The config without Hydra's own part."""
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config
