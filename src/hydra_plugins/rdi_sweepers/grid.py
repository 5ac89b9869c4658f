"""`hydra/sweeper=grid`, the default: every combination; one failed job does not hide how the others ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from rdi.cli import _sweeps
from rdi.errors import UserError


class Grid(BasicSweeper):
    """Hydra's own sweeper with several grids side by side and an honest end.

    params: option -> values, as on the command line, crossed with one another. grids: further such grids, each
    crossed with `params` and run after the other; what one of them sets, no other one needs. What the user types
    replaces an option of either. max_batch_size: jobs handed to the launcher at once; None = all.
    """

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size, params=dict(params or {}))
        self.grids = [dict(grid) for grid in grids or [{}]]

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs and say how they ended. Raises SweepFailed when some failed."""
        assert self.config is not None, "setup() comes first"
        assert self.launcher is not None, "setup() comes first"
        jobs = self.jobs(arguments)
        self.validate_batch_is_legal(jobs)
        results: list[JobReturn] = []
        for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
            results += _sweeps.launch(self.launcher, batch, len(results))
        title = OmegaConf.select(self.config, "sweep") or "sweep"
        if command := _sweeps.compared([result._return_value for result in results], title):
            _sweeps.logger.info("to compare them: %s", command)
        _sweeps.conclude(title, jobs, results)
        return results

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every job, equal jobs once. Raises UserError for values that cannot be enumerated."""
        assert self.hydra_context is not None, "setup() comes first"
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        found: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            words = [*(f"{key}={value}" for key, value in {**self.params, **grid}.items()), *arguments]
            overrides = parser.parse_overrides(words)
            for override in overrides:
                if override.is_interval_sweep():
                    raise UserError(
                        f"{override.input_line} has no end of values: list some, or search with hydra/sweeper=tune"
                    )
                if override.key_or_group == "sweep" and override.is_sweep_override():
                    raise UserError("one sweep at a time: a sweep over sweeps would run none of their grids")
            ((*combinations,),) = self.split_arguments(overrides, None)
            found |= {tuple(job): None for job in combinations}
        return [list(job) for job in found]
