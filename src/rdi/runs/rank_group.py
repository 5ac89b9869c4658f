"""The group of ranks that this process is of: whether it was started as one, how they meet, and what became of them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rdi import signals
from rdi.errors import Interrupted, UserError

if TYPE_CHECKING:  # torch with it
    from rdi.ranks import Ranks

RESTARTED = "TORCHELASTIC_RESTART_COUNT"


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


def check_devices(ranks: int, device: str) -> None:
    """Raise UserError for a number of ranks that this machine has no devices for."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    there, kind = (gpus, "GPUs") if gpus else (len(os.sched_getaffinity(0)), "cores")
    if not 1 <= ranks <= there:
        raise UserError(f"ranks must be from 1 to {there}, the {kind} of this machine, got {ranks}")


@contextmanager
def group() -> Iterator[Ranks]:
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


def outcome(answers: list[tuple[str, Any]]) -> Any:
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
def handlers_kept() -> Iterator[None]:
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
def quiet_launcher() -> Iterator[None]:
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
