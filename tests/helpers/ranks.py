"""Several processes that share batches over gloo, for tests."""

import contextlib
import os
import pickle
import shlex
import socket
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.forked import CONTEXT
from rdi.ranks import ALONE, Ranks

PATIENCE = 600
"""Seconds; what takes longer hangs."""


def _one(rank, count, folder, paths, meet, function, arguments):
    sys.path[:] = paths
    torch.set_num_threads(1)
    ranks = Ranks(rank, count, rank, count)
    try:
        if meet:
            store = dist.FileStore(f"{folder}/store", count)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=120))
        answer = None, function(ranks, *arguments)
    except BaseException:
        answer = traceback.format_exc(), None
    Path(folder, str(rank)).write_bytes(pickle.dumps(answer))
    if dist.is_initialized():
        dist.destroy_process_group()


def on_ranks(count, function, *arguments, meet=True):
    """Call function(ranks, *arguments) in `count` processes; what each returned.

    function: of a module of tests.
    meet: whether they are a group of torch.distributed.
    """
    if count == 1:
        return [function(ALONE, *arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(count)]
        processes = [
            CONTEXT.Process(target=_one, args=(rank, count, folder, sys.path, meet, function, arguments), daemon=True)
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        for process in processes:
            process.kill()
        answers = [pickle.loads(file.read_bytes()) if file.is_file() else ("no answer", None) for file in files]
    assert not [failure for failure, _ in answers if failure], "\n".join(str(failure) for failure, _ in answers)
    return [answer for _, answer in answers]


def commands(ranks, place, cases):
    """Run commands one after the other, as torchrun would start them; status of each, and what this rank said.

    To be called by on_ranks with meet=False.
    place: a folder for each rank, which it works in, is made below it.
    cases: for each rank the command, None for a rank that never comes; its environment; seconds that it waits.
    """
    from rdi.cli import main
    from rdi.runs import rank_group

    mine = Path(place, f"node{ranks.rank}")
    mine.mkdir(exist_ok=True)
    os.chdir(mine)
    before = {name: value for name, value in os.environ.items() if not name.startswith("RDI_")}
    found = []
    for words, environment, seconds in (case[ranks.rank] for case in cases):
        if words is None:
            found.append((0, ""))
            continue
        os.environ.clear()
        os.environ.update(before, XDG_CACHE_HOME=f"{place}/cache", **environment)
        rank_group.MEETING = rank_group.TELLING = timedelta(seconds=seconds)
        status = 0
        with tempfile.TemporaryFile() as said:
            with _heard(said):
                try:
                    main(shlex.split(words))
                except SystemExit as end:
                    status = end.code or 0
            said.seek(0)
            found.append((status, said.read().decode()))
    return found


@contextlib.contextmanager
def _heard(file):
    """Inside, all that any part of this process says to its terminal goes to a file."""
    ends = [os.dup(end) for end in (1, 2)]
    for end in (1, 2):
        os.dup2(file.fileno(), end)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for end, old in zip((1, 2), ends, strict=True):
            os.dup2(old, end)
            os.close(old)


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
