"""Commands in several processes: started here for `ranks=N`, by torch's elastic launcher, or by torchrun or srun."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rdi import signals
from rdi.cli import _edge, _rank
from rdi.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rdi.ranks import Ranks

Work = Callable[[Any], Any]
RESTARTED = "TORCHELASTIC_RESTART_COUNT"
RESTARTS = 3
"""How often ranks begin again from the saved state after one of them was killed."""
GRACE = 300
"""Seconds in which ranks that are told to stop may come to the end of their step and save their state."""
BEGUN = ("train", "run")
"""Commands whose overwrite=true empties the run folder when they begin."""


def started() -> int:
    """Return how many ranks torchrun, srun or we started, this process being one of them; 0: it is none."""
    try:
        count = int(os.environ.get("WORLD_SIZE", "")) if os.environ.get("RANK", "").isdigit() else 0
    except ValueError:
        return 0
    return count if count > 1 else 0


def follows() -> bool:
    """Return whether this process is a rank that does not lead, and so says nothing."""
    return bool(started()) and os.environ["RANK"] != "0"


def restarted() -> bool:
    """Return whether the ranks began again because one was lost."""
    return os.environ.get(RESTARTED, "0") != "0"


def run(work: Work, command: str, cfg: DictConfig, as_rank: Work) -> Any:
    """Do the work of a command as its option `ranks` says, or as one of the ranks that were started.

    as_rank: what each rank of its own processes calls with `cfg`, picklable; it comes to `joined`.
    """
    if started():
        return joined(work, command, cfg)
    if "ranks" not in cfg or cfg.ranks is None or cfg.ranks == 1:
        return work(cfg)
    _check(cfg.ranks, cfg.device)
    return _launched(as_rank, cfg)


def _check(ranks: int, device: str) -> None:
    """Raise UserError for a number of ranks that this machine has no devices for."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    there, kind = (gpus, "GPUs") if gpus else (len(os.sched_getaffinity(0)), "cores")
    if not 1 <= ranks <= there:
        raise UserError(f"ranks must be from 1 to {there}, the {kind} of this machine, got {ranks}")


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
    with _group() as ranks:
        if ranks.rank:
            try:
                return ranks.serve()
            except UserError as error:
                error.own = not error.everywhere
                raise
        made = work(cfg)
        ranks.dismiss()
        return made


@contextmanager
def _group() -> Iterator[Ranks]:
    """Meet the other ranks, as torchrun's variables say, and part from them at the end, whatever happens inside."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from rdi.ranks import current

    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    try:
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # on one machine the launcher's store outlives a restart, and with it the addresses of the ranks before
            store, rank, count = next(rendezvous("env://"))
            attempt = dist.PrefixStore(f"attempt {os.environ.get(RESTARTED, '0')}", store)
            dist.init_process_group(backend, store=attempt, rank=rank, world_size=count)
        else:
            dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        port, reason = os.environ.get("MASTER_PORT"), str(error).strip().splitlines()[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise UserError(f"port {port} is in use: set MASTER_PORT to another one") from error
        raise UserError(f"the ranks cannot meet ({reason}): check MASTER_ADDR and MASTER_PORT") from error
    try:
        yield current()
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _launched(as_rank: Work, cfg: DictConfig) -> Any:
    """Start the ranks on this machine, wait for them, and return or raise what came of the leading one."""
    import cloudpickle
    from hydra.core.singleton import Singleton
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="rdi-ranks-") as name, _handlers_kept(), _quiet_launcher():
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
    return _outcome(answers)


def _outcome(answers: list[tuple[str, Any]]) -> Any:
    """Return what the leading rank returned, or raise what most needs to be known of what the ranks met."""
    for kind, error in (
        ("bug", RuntimeError),
        ("user", UserError),
        ("interrupted", Interrupted),
        ("lost", Interrupted),
    ):
        for rank, (found, text) in enumerate(answers):
            if found == kind:
                raise error(f"rank {rank}: {text}" if kind == "bug" or (kind == "user" and rank) else text)
    returned, offline = answers[0][1]
    if offline:
        from rdi import tracking

        for folder in offline:
            tracking.note(folder)
    return returned


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put signal handlers back at the end: the launcher replaces them."""
    numbers = (*signals.NUMBERS, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(ValueError):  # outside the main thread nothing was replaced
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Let the launcher's own log of what becomes of ranks be: what a user should know is said in one line."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}  # each has a level of its own
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
