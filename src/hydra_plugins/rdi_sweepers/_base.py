"""The base of both sweepers. Hydra does not scan this file, so that the class in it keeps one identity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from rdi import signals
from rdi.trust import trusted


class Launching(Sweeper):
    """A sweeper with its launcher. Not Hydra's own BasicSweeper: that module is executed twice, with two classes."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands a sweeper before it plans jobs."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; run folders are read here too, under the trust that the jobs have."""
        own = [str(key) for key in self.config if key != "hydra"]
        with (
            signals.interrupts(),
            trusted(self.config.trust, OmegaConf.to_container(OmegaConf.masked_copy(self.config, own))),
        ):
            return self.run_jobs(arguments)

    @abstractmethod
    def run_jobs(self, arguments: list[str]) -> Any:
        """Run all jobs."""

    def parse(self, words: Sequence[str]) -> list[Override]:
        """Overrides as Hydra's grammar reads them."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(list(words))
