"""Commands in several processes: started here for `ranks=N`, by torch's elastic launcher, or by torchrun or srun."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rdi.cli import _edge, _rank
from rdi.errors import Interrupted, UserError
from rdi.runs.rank_group import (
    check_alike,
    check_devices,
    check_environment,
    follows,
    group,
    handlers_kept,
    outcome,
    quiet_launcher,
    restarted,
    started,
)

Work = Callable[[Any], Any]
RESTARTS = 3
"""How often ranks begin again from the saved state after one of them was killed."""
GRACE = 300
"""Seconds in which ranks that are told to stop may come to the end of their step and save their state."""
BEGUN = ("train", "run")
"""Commands whose overwrite=true empties the run folder when they begin."""


def run(work: Work, command: str, cfg: DictConfig, as_rank: Work) -> Any:
    """Do the work of a command as its option `ranks` says, or as one of the ranks that were started.

    as_rank: what each rank of its own processes calls with `cfg`, picklable; it comes to `joined`.
    """
    if "ranks" in cfg:
        check_environment()
    if started():
        return joined(work, command, cfg)
    if "ranks" not in cfg or cfg.ranks is None or cfg.ranks == 1:
        return work(cfg)
    check_devices(cfg.ranks, cfg.device)
    return _launched(as_rank, cfg)


def joined(work: Work, command: str, cfg: DictConfig) -> Any:
    """Do the work of a command as one of the ranks that were started. Returns None on those that do not lead."""
    count = started()
    if command == "table" or (_edge.multirun() and _rank.OURS not in os.environ):
        raise UserError(f"jobs of a sweep start their own ranks: leave torchrun out, and give ranks={count}")
    if "ranks" not in cfg:
        return None if follows() else work(cfg)
    if cfg.ranks not in (None, count):
        raise UserError(f"ranks={cfg.ranks}, but {count} processes were started: leave ranks out")
    if restarted() and command in BEGUN:
        cfg.overwrite = False  # it was done at the first start
    with group() as ranks:
        check_alike(ranks, [command, *_edge.overrides()])
        if ranks.rank:
            try:
                return ranks.serve()
            except UserError as error:
                error.own = not error.everywhere
                raise
        made = work(cfg)
        ranks.dismiss()
        return made


def _launched(as_rank: Work, cfg: DictConfig) -> Any:
    """Start the ranks on this machine, wait for them, and return or raise what came of the leading one."""
    import cloudpickle
    from hydra.core.singleton import Singleton
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="rdi-ranks-") as name, handlers_kept(), quiet_launcher():
        place = Path(name)
        (place / _rank.ASKED).write_bytes(cloudpickle.dumps((as_rank, cfg, Singleton.get_state())))
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=cfg.ranks,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=RESTARTS,
            shutdown_timeout=GRACE,
            logs_specs=DefaultLogsSpecs(log_dir=f"{name}/logs"),
        )
        try:
            elastic_launch(launch, sys.executable)("-m", _rank.__name__, name)
        except SignalException:
            kind, said = _rank.read(place / "0") or ("", "")
            what = said if kind == "interrupted" and said else "interrupted; the same command starts again"
            raise Interrupted(what) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise UserError(
                f"rank {rank} ended without a word {RESTARTS + 1} times ({failure.signal_name()}, status "
                f"{failure.exitcode}); was the memory full? What was saved last is kept, the same command goes on"
            ) from None
        answers = [_rank.read(place / str(rank)) or ("bug", "it left no answer") for rank in range(cfg.ranks)]
    return outcome(answers)
