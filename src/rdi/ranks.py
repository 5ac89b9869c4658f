"""Ranks: processes that share the work of one, the batch they share it by, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rdi import signals
from rdi.errors import RankLost, UserError
from rdi.seeds import PartGenerator

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of torch.distributed's default group, which must exist where count > 1.

    Every method that communicates must be called by all ranks in the same order. Raises RankLost once one has ended.

    rank: of this process, 0-based; rank 0 leads: it alone writes and prints.
    count: number of processes.
    local_rank, local_count: the same on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def alone(self) -> bool:
        """True where this process does all the work."""
        return self.count == 1

    def share(self, total: int) -> Share:
        """Return how a batch of `total` images is shared: in order, and as evenly as it can be."""
        return Share(self, tuple(total * rank // self.count for rank in range(self.count + 1)))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set on any rank."""
        if self.alone:
            return flag
        said = torch.tensor([int(flag)], dtype=torch.int32)  # on the CPU: no step waits for the device
        with talking():
            dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return bool(said)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace float tensors, the same ones on every rank, by their means over the ranks: all in one message."""
        if self.alone or not tensors:
            return
        flat = torch.cat([at_least_float32(tensor.detach().reshape(-1)) for tensor in tensors])
        with talking():
            dist.all_reduce(flat)
        flat /= self.count
        with torch.no_grad():
            for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    def collect(self, item: T) -> list[T]:
        """Return the picklable items of all ranks, in their order."""
        if self.alone:
            return [item]
        items: list[Any] = [None] * self.count
        with talking():
            dist.all_gather_object(items, item)
        return items

    def in_turn(
        self, begins: Sequence[int], work: Callable[[int], T], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[T]:
        """Yield work(begin) for every one of `begins`, in order, on the leading rank; nothing on the others.

        The ranks take turns at the work, whose result must be picklable. Ends early once `stop` says so on any rank.
        A UserError on one is one on all.
        """
        for first in range(0, len(begins), self.count):
            if self.any(stop()):
                return
            mine = begins[first : first + self.count][self.rank : self.rank + 1]
            with self.agreed():
                done = [work(begin) for begin in mine]
            yield from done if self.alone else self._lead(done)

    def _lead(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in their order, on the leading one; none on the others."""
        gathered: list[Any] | None = None if self.rank else [None] * self.count
        with talking():
            dist.gather_object(items, gathered)
        return [item for part in gathered or [] for item in part]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Make a UserError on one rank inside one on all, in the words of the first that met it."""
        said = None
        try:
            yield
        except UserError as error:
            if self.alone:
                raise
            said = str(error)
        for rank, text in enumerate(self.collect(said)):
            if text is not None:
                shared = UserError(text if rank == 0 else f"rank {rank}: {text}")
                shared.everywhere = True
                raise shared

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have every other rank call `function(ranks, stop, *arguments)` in its `serve`; for the leading rank.

        function: of a module.
        arguments: picklable.
        """
        if not self.alone:
            self._broadcast((function, arguments))

    def dismiss(self) -> None:
        """End the `serve` of the other ranks; for the leading rank."""
        if not self.alone:
            self._broadcast(None)

    def serve(self) -> None:
        """Do what the leading rank calls for, until it dismisses; for every other rank.

        A signal ends nothing here: `stop` returns True from then on, and the leading rank learns of it when it next
        asks `any`.
        """
        with signals.stop_on_signals(patient=True) as stop:
            while (asked := self._broadcast(None)) is not None:
                function, arguments = asked
                function(self, stop, *arguments)

    def _broadcast(self, item: Any) -> Any:
        items = [item]
        with talking():
            dist.broadcast_object_list(items, src=0)
        return items[0]


ALONE = Ranks()


def current() -> Ranks:
    """Return the ranks of torch.distributed's default group, this process being one; ALONE without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    local = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Ranks(dist.get_rank(), dist.get_world_size(), *local)


@dataclass(frozen=True)
class Share:
    """A batch that ranks share.

    ranks: the processes.
    bounds: rank r has the rows from bounds[r] to bounds[r + 1], ascending from 0.
    """

    ranks: Ranks
    bounds: tuple[int, ...]

    @property
    def total(self) -> int:
        """Rows of the batch."""
        return self.bounds[-1]

    @property
    def rows(self) -> slice:
        """The rows of this rank."""
        return slice(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    @property
    def size(self) -> int:
        """Number of rows of this rank."""
        return self.rows.stop - self.rows.start

    def first(self, count: int) -> Share:
        """Return how the first `count` rows of the batch are shared; a rank may have none of them."""
        return Share(self.ranks, tuple(min(bound, count) for bound in self.bounds))

    def parts(self, count: int) -> list[tuple[slice, Share]]:
        """Cut the batch into `count` parts, of each rank's rows as evenly as can be.

        Of each part: which of this rank's rows it has, counted from their first, and how ranks share it.
        """
        if count == 1:
            return [(slice(0, self.size), self)]
        sizes = [high - low for low, high in zip(self.bounds, self.bounds[1:], strict=False)]
        found = []
        for part in range(count):
            cuts = [slice(size * part // count, size * (part + 1) // count) for size in sizes]
            bounds = [0, *accumulate(cut.stop - cut.start for cut in cuts)]
            found.append((cuts[self.ranks.rank], Share(self.ranks, tuple(bounds))))
        return found

    def generator(self, whole: torch.Generator) -> torch.Generator:
        """Return the generator of this rank's rows, out of the one that would draw for the whole batch."""
        if self.ranks.alone:
            return whole
        return PartGenerator(whole.device).begin(whole.initial_seed(), self.rows, self.total)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the whole batch, out of what each rank has of it, in at least float32 where it is floating point.

        Its gradient reaches this rank's rows times the number of ranks, so that the mean over ranks of the gradients
        of a loss on the whole batch is the gradient of that loss.
        """
        if self.ranks.alone:
            return rows
        if not rows.is_floating_point():
            return self._whole(rows)
        whole: torch.Tensor = _Gather.apply(at_least_float32(rows), self)
        return whole

    def _whole(self, rows: torch.Tensor) -> torch.Tensor:
        sizes = [high - low for low, high in zip(self.bounds, self.bounds[1:], strict=False)]
        mine = rows.new_zeros(max(sizes), *rows.shape[1:])
        mine[: len(rows)] = rows
        parts = [torch.empty_like(mine) for _ in sizes]
        with talking():
            dist.all_gather(parts, mine)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def whole_batch(total: int) -> Share:
    """Return the share of a process that has all rows."""
    return ALONE.share(total)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, share: Share) -> torch.Tensor:
        ctx.share = share
        return share._whole(rows)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        share: Share = ctx.share
        return grad[share.rows] * share.ranks.count, None


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, in float32 if it has fewer bits: what sums over ranks are taken in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def talking() -> Iterator[None]:
    """Turn what torch.distributed says when another process is gone into RankLost."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise RankLost(f"another rank has ended ({reason}); what was saved last is kept") from error
