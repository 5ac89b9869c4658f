"""The group of ranks that this process is of: whether it was started as one, how they meet, and what became of them."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdi import signals
from rdi.errors import Interrupted, UserError

if TYPE_CHECKING:  # torch with it
    from rdi.ranks import Ranks

RESTARTED = "TORCHELASTIC_RESTART_COUNT"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable of the file from which torchrun reads why a rank failed: <attempt>/<local rank>/error.json."""
MEETING = timedelta(minutes=10)
"""Time that a rank waits for the others, as torchrun does."""
TELLING = timedelta(minutes=1)
"""Time that one waits which has only to tell them why it cannot begin."""


def started() -> int:
    """Return how many ranks torchrun, srun or we started, this process being one of them; 0: it is none."""
    rank, count = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(count) if rank.isdecimal() and count.isdecimal() and int(rank) < int(count) > 1 else 0


def follows() -> bool:
    """Return whether this process is a rank that does not lead, and so says nothing."""
    return bool(started()) and os.environ["RANK"] != "0"


def restarted() -> bool:
    """Return whether the ranks began again because one was lost."""
    return os.environ.get(RESTARTED, "0") != "0"


def check_environment() -> None:
    """Raise UserError for variables of ranks that do not fit together: half a set would be another training."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    for mine, all_of_them in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        rank, count = given[mine], given[all_of_them]
        if rank is None and count is None:
            continue
        if mine == "RANK" and (rank is None or count is None):
            there, gone = (mine, all_of_them) if count is None else (all_of_them, mine)
            raise UserError(f"{there} is set and {gone} is not: set both, as torchrun does, or unset {there}")
        rank, count = rank or "0", count or "1"
        if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
            raise UserError(
                f"{mine}={rank} and {all_of_them}={count} must be whole numbers, {mine} from 0 to below {all_of_them}: "
                "start ranks by torchrun, or unset both"
            )


def check_alike(ranks: Ranks, words: Sequence[str] = (), failure: str | None = None) -> None:
    """Raise UserError on every rank where one cannot begin, or was started with other words or another torch.

    words: the command and its options.
    failure: why this rank cannot begin.
    """
    import torch

    said = ranks.collect((failure, torch.__version__, list(words)))
    _, first_torch, first_words = said[0]
    for rank, (failed, its_torch, its_words) in enumerate(said):
        if failed is not None:
            what = f"rank {rank}: {failed}"
        elif its_torch != first_torch:
            what = f"rank {rank} has torch {its_torch}, and rank 0 {first_torch}: install the same"
        elif its_words != first_words:
            only = " ".join(word for word in its_words if word not in first_words) or "less"
            missed = " ".join(word for word in first_words if word not in its_words) or "less"
            what = f"rank {rank} was started with {only}, and rank 0 with {missed}: start all of them alike"
        else:
            continue
        error = UserError(what)
        error.everywhere = True
        raise error


def silent(failure: BaseException, text: str) -> bool:
    """Return whether this rank ends without a word, because the leading one says why, or has said it before.

    failure, text: what it ends of, and that in one line.
    """
    if not follows() or getattr(failure, "own", False):
        return said_before(text)
    if not isinstance(failure, Interrupted) and not getattr(failure, "everywhere", False):
        with suppress(UserError, Interrupted), group(TELLING) as ranks:
            check_alike(ranks, failure=text)
    return True


def said_before(text: str) -> bool:
    """Return whether this rank failed with this text before torchrun restarted it; note the text where it looks."""
    name = os.environ.get(ERROR_FILE)
    if name is None:
        return False
    file = Path(name)
    before = file.parents[1].with_name(f"attempt_{int(os.environ.get(RESTARTED, '0')) - 1}") / file.parent.name
    with suppress(OSError):
        file.write_text(json.dumps({"message": text, "timestamp": int(time.time())}))
    with suppress(OSError, ValueError, LookupError, TypeError):
        return bool(json.loads((before / file.name).read_text())["message"] == text)
    return False


def check_devices(ranks: int, device: str) -> None:
    """Raise UserError for a number of ranks that this machine has no devices for."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device} is not here: no GPU that torch can use; use device=auto or device=cpu")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and device != "cpu" else 0
    there, kind = (gpus, "GPUs") if gpus else (len(os.sched_getaffinity(0)), "cores")
    if not 1 <= ranks <= there:
        raise UserError(f"ranks must be from 1 to {there}, the {kind} of this machine, got {ranks}")


@contextmanager
def group(patience: timedelta | None = None) -> Iterator[Ranks]:
    """Meet the other ranks, as torchrun's variables say, and part from them at the end, whatever happens inside.

    patience: how long to wait for them; None: MEETING.
    Raises UserError, the same on all, where they cannot meet.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from rdi.ranks import current

    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    try:
        store, rank, count = next(rendezvous("env://", timeout=patience or MEETING))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # on one machine the launcher's store outlives a restart, and with it the addresses of the ranks before
            store = dist.PrefixStore(f"attempt {os.environ.get(RESTARTED, '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (RuntimeError, ValueError, TypeError) as error:  # a TypeError: the port is out of range
        port, reason = os.environ.get("MASTER_PORT"), str(error).strip().splitlines()[0]
        taken = "EADDRINUSE" in str(error) or "address already in use" in str(error).lower()
        unmet = UserError(
            f"port {port} is in use: set MASTER_PORT to another one"
            if taken
            else f"the ranks cannot meet ({reason}): check MASTER_ADDR and MASTER_PORT"
        )
        unmet.everywhere = True
        raise unmet from error
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
