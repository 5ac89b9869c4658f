"""Early exit over a stream of batches: images are pooled across batches before every stage, so that it runs full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rdi.errors import UserError
from rdi.exits.compact import staying, take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy


@dataclass
class _Batch:
    """A batch that came, number `number`; answers, exits and skipped MACs are filled in as images leave."""

    number: int
    exits: torch.Tensor
    skipped: torch.Tensor
    answers: torch.Tensor | None = None
    left: int = 0


@dataclass
class _Piece:
    """Images of one batch before a stage. rows: of the batch; logits_NKC: of the exits behind them."""

    batch: _Batch
    rows: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor | None

    def cut(self, count: int) -> tuple[_Piece, _Piece]:
        """Return the first `count` images, and the others."""
        parts = []
        for rows in (slice(count), slice(count, None)):
            logits = None if self.logits is None else self.logits[rows]
            parts.append(_Piece(self.batch, self.rows[rows], self.features[rows], logits))
        return parts[0], parts[1]


class Stream:
    """Pools images before every stage, and runs a pool that is full, or holds an image that is due.

    model: in eval mode.
    policy: of as many exits.
    max_wait: batches that may come after an image before it must be answered; 0 = each batch is answered before the
        next is taken.
    full: images that fill a pool.
    """

    def __init__(self, model: MultiExitNet, policy: Policy, max_wait: int, full: int) -> None:
        self.model, self.policy = model, policy
        self.max_wait, self.full = max_wait, full
        self._pools: list[list[_Piece]] = [[] for _ in range(model.exits)]
        self._open: list[_Batch] = []

    @torch.no_grad()
    def put(self, number: int, x: torch.Tensor) -> None:
        """Take batch `number`, x_NCHW, and run every pool that is full or due."""
        zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
        batch = _Batch(number, zeros, zeros.clone(), left=len(x))
        self._open.append(batch)
        piece = _Piece(batch, torch.arange(len(x), device=x.device), x, None)
        if len(x):
            self._pools[0].append(piece)
        else:
            self._run(0, [piece])  # for answers of the right shape
        self._advance(due=number - self.max_wait)
        for waiting in self._pools[0]:
            if waiting.batch is batch:  # the caller may fill the same tensor with the next images
                waiting.features = waiting.features.clone()

    @torch.no_grad()
    def finish(self) -> None:
        """Answer everything that waits: no batch comes any more."""
        self._advance(due=self._open[-1].number if self._open else 0)

    def done(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield (answers_NC, exits_N, skipped_N) of the batches that are complete, in the order in which they came.

        skipped: MACs that gates left out, int64; 0 without gates.
        """
        while self._open and self._open[0].left == 0:
            batch = self._open.pop(0)
            assert batch.answers is not None, "its first stage ran"
            yield batch.answers, batch.exits, batch.skipped

    def _advance(self, due: int) -> None:
        for k in range(self.model.exits):
            while pieces := self._ready(k, due):
                self._run(k, pieces)

    def _ready(self, k: int, due: int) -> list[_Piece]:
        """Take from pool k, the oldest first: a full load, or all of it where one image is due."""
        pool = self._pools[k]
        waiting = sum(len(piece.rows) for piece in pool)
        if waiting < self.full and not any(piece.batch.number <= due for piece in pool):
            return []
        taken: list[_Piece] = []
        room = self.full
        while pool and room:
            if len(pool[0].rows) > room:
                piece, pool[0] = pool[0].cut(room)
            else:
                piece = pool.pop(0)
            taken.append(piece)
            room -= len(piece.rows)
        return taken

    def _run(self, k: int, pieces: Sequence[_Piece]) -> None:
        last = k == self.model.exits - 1
        features, out = self.model.step(_joined([piece.features for piece in pieces]), k)
        skipped = self.model.skipped(features, k)
        seen = [piece.logits for piece in pieces if piece.logits is not None]
        logits = torch.cat([_joined(seen), out[:, None]], dim=1) if seen else out[:, None]
        answers = self.policy.answers(logits)[:, -1].float()
        leave = torch.ones(len(out), dtype=torch.bool, device=out.device) if last else self.policy.leaves(logits)
        start = 0
        for piece in pieces:
            here = slice(start, start + len(piece.rows))
            start = here.stop
            gone, stay = leave[here].nonzero().squeeze(1), staying(leave[here])
            batch = piece.batch
            if batch.answers is None:
                batch.answers = answers.new_empty(len(batch.exits), answers.shape[1])
            batch.answers.index_copy_(0, piece.rows[gone], answers[here][gone])
            batch.exits[piece.rows[gone]] = k
            if skipped is not None:
                batch.skipped[piece.rows[gone]] = skipped[here][gone]
            batch.left -= len(gone)
            if len(stay):
                rest = _Piece(batch, piece.rows[stay], take(features[here], stay), logits[here][stay])
                self._pools[k + 1].append(rest)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def check_alike(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Return batches of images of one size. Raises UserError at once for what has no batches, later for other sizes."""
    if not isinstance(batches, Iterable):
        raise UserError(f"batches must be an iterable of tensors (N, C, H, W), got {type(batches).__name__}")
    return _alike(batches)


def _alike(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    shape = None
    for x in batches:
        if not isinstance(x, torch.Tensor) or x.ndim != 4:
            got = f"one of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise UserError(
                f"a stream takes tensors (N, C, H, W), got {got}: of a loader's pairs give the images alone, as "
                "(x for x, _ in loader)"
            )
        shape = x.shape[1:] if shape is None else shape
        if x.shape[1:] != shape:
            sizes = ["x".join(map(str, one)) for one in (shape, x.shape[1:])]
            raise UserError(f"all images of a stream must have one size: {sizes[0]} came first, then {sizes[1]}")
        yield x
