"""Rows of several processes: training steps of as many ranks as cores, one thread each, against one process of all."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from rdi.benchmarks.attacks import Subject
from rdi.benchmarks.timing import Work, race
from rdi.benchmarks.training import FAST, defense, paced, trainee
from rdi.data.augment import draw
from rdi.data.batches import to_float
from rdi.defenses.base import Origin
from rdi.emulation import precisions
from rdi.errors import UserError
from rdi.memory import keep_freed_memory
from rdi.ranks import ALONE, Ranks
from rdi.records import BenchRow
from rdi.seeds import generator
from rdi.shared_layers import BATCHNORM, shared
from rdi.training_settings import autocast

RANKS = 2
"""Processes that are compared with one of as many threads, where there are as many cores."""
NAMES = ("max_avg", FAST)
Kind = tuple[str, str, str]
"""Defense, precision and BatchNorm of a step."""
TARGET = 1.0
GRACE = 20
"""Seconds that a rank has to end when there is nothing more to measure."""
logger = logging.getLogger("rdi")


def rows(subject: Subject) -> list[BenchRow]:
    """Measure a row per defense, precision and BatchNorm: seconds of a step of one process / of RANKS ranks.

    They take turns at the machine, at RANKS threads in all. A rank has one thread.
    Raises UserError where a rank ends before its time.
    """
    device, samples = subject.x.device, len(subject.x)
    if device.type != "cpu" or len(os.sched_getaffinity(0)) < RANKS or samples < RANKS:
        logger.warning(
            "ranks are compared on %d or more cores of a CPU, by as many images: these rows are left out", RANKS
        )
        return []
    threads, found = torch.get_num_threads(), []
    against = f"1 rank of {RANKS} threads"
    try:
        torch.set_num_threads(RANKS)
        with _started(subject) as step:
            for name, precision, batchnorm in product(NAMES, precisions(device), BATCHNORM):
                key = f"{name}, {precision}, {RANKS} ranks of 1 thread, BatchNorm {batchnorm}"
                alone = RankStep(subject, name, precision, batchnorm, ALONE)
                work: dict[str, Work] = {against: alone, key: partial(step, (name, precision, batchnorm))}
                times = race(work, repeats=subject.repeats, device=device)
                found.append(paced("ranks", times, key, against, samples, TARGET))
    finally:
        torch.set_num_threads(threads)
    return found


class RankStep:
    """One training step as rdi.training makes it in one of several ranks, on a copy of the network."""

    def __init__(self, subject: Subject, name: str, precision: str, batchnorm: str, ranks: Ranks) -> None:
        self.model, self.optimizer = trainee(subject.model)
        self.model.to(memory_format=torch.channels_last)
        self.defense, self.precision, self.batchnorm = defense(subject, name, precision), precision, batchnorm
        self.images, self.y = (subject.x * 255).round().to(torch.uint8), subject.y
        self.share, self.step = ranks.share(len(subject.x)), 0

    def __call__(self) -> float:
        """Augment, craft, two passes, average the gradients, update. Return this rank's loss."""
        share, device = self.share, self.images.device
        stream = share.generator(generator(device, 0, "bench", self.step))
        placement = draw(self.images.shape, "crop_flip", stream, device).part(share.rows)
        index = torch.arange(len(self.images))[share.rows]
        x = to_float(placement.place(self.images[index])).to(memory_format=torch.channels_last)
        self.defense.origin = Origin(index, placement, len(self.images), self.step, share)
        with shared(self.model, share, self.batchnorm):
            with autocast(device, self.precision):
                loss, _ = self.defense.loss(self.model, x, self.y[index], stream)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        share.ranks.average([one.grad for one in self.model.parameters() if one.grad is not None])
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())


@contextmanager
def _started(subject: Subject) -> Iterator[Callable[[Kind], list[float]]]:
    """Start the ranks; give what makes a step of a kind on all of them and returns their losses."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []

    def step(kind: Kind) -> list[float]:
        try:
            for pipe in pipes:
                pipe.send(kind)
            return [pipe.recv() for pipe in pipes]
        except (EOFError, OSError) as error:
            raise UserError("a rank of the benchmark has ended: leave `ranks` out of rows=[...]") from error

    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(RANKS):
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(rank, folder, subject, there), daemon=True)
                process.start()
                there.close()
                pipes.append(here)
                processes.append(process)
            yield step
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(GRACE)
                process.kill()
                process.join()


def _serve(rank: int, folder: str, subject: Subject, pipe: Connection) -> None:
    """Make the steps that are asked for until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: who asks ends, and so this does
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process that trains on a CPU does
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    ranks, steps = Ranks(rank, RANKS, rank, RANKS), dict[Kind, RankStep]()
    try:
        while True:
            kind: Kind = pipe.recv()
            if kind not in steps:
                steps = {kind: RankStep(subject, *kind, ranks)}
            pipe.send(steps[kind]())
    except EOFError:
        dist.destroy_process_group()
