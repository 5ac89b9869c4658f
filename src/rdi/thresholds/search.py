"""Search for thresholds under a constraint: coordinate ascent, exact in each coordinate. Pure arithmetic on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CANDIDATES = 100
"""Thresholds per exit to choose from: quantiles. More of them follow the noise of the calibration samples."""
BISECTIONS = 12
"""Prices that are tried from each start."""
PRICES = (1e-5, 1e2)
"""Accuracy that the MACs of the costliest image may cost: from less than one sample in a hundred thousand to all."""
SWEEPS = 20
"""Most rounds over all exits; a local optimum is found after three or four."""
STARTS = (0.5, 1.0, 2.0)
"""Geometric ratios of the exit shares that the search starts from."""


@dataclass(frozen=True)
class Group:
    """N samples under B attacks (1 for clean); a sample counts as right if it is right under all of them.

    uncertainty: float_BNK, of each exit but the last (K = E-1); smaller is more certain.
    hits: bool_BNE, each exit is right.
    weight: of the group in accuracy and cost; the weights of all groups sum to 1.
    costs: MACs up to each exit, BNE: where there are gates, each sample's own.
    """

    uncertainty: np.ndarray
    hits: np.ndarray
    weight: float
    costs: np.ndarray


@dataclass(frozen=True)
class Point:
    """Thresholds and their accuracy and cost on the samples.

    values: thresholds on the uncertainty (leave if strictly below), may be infinite.
    accuracy: a fraction.
    cost: mean MACs.
    """

    values: tuple[float, ...]
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Line:
    """Figures of the candidates of one exit while the other thresholds stay: from nobody leaves to everybody.

    accuracy, cost: one per candidate.
    """

    accuracy: np.ndarray
    cost: np.ndarray


Allowed = Callable[[Line], np.ndarray]
"""Line -> bool per candidate: it keeps the constraint."""
Worth = Callable[[Line], np.ndarray]
"""Line -> objective per candidate, to be maximised."""


class Search:
    """A search for the best thresholds under a limit on the mean cost or on the accuracy; deterministic.

    Given the others, one threshold is chosen exactly among its candidates; going round the exits until nothing improves
    gives a local optimum of accuracy - price * cost. The price is bisected, from several starts, until the constraint
    holds; what it leaves over is then spent threshold by threshold.

    groups: the samples, with weights that sum to 1.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.exits = groups[0].hits.shape[2]
        costs = [group.costs.reshape(-1, self.exits) for group in groups]
        self._costs = np.concatenate(costs, dtype=float).T.copy()
        self._costliest = float(self._costs.max())
        self._shapes = [(group.hits.shape[:2], group.weight) for group in groups]
        self._hits = np.concatenate([group.hits.reshape(-1, self.exits) for group in groups]).T.copy()
        self._weights = np.concatenate([np.full(b * n, weight / (b * n)) for (b, n), weight in self._shapes])
        self._candidates: list[np.ndarray] = []
        self._ranks: list[np.ndarray] = []  # per exit: the first candidate that lets the sample leave
        for k in range(self.exits - 1):
            uncertainty = np.concatenate([group.uncertainty[..., k].ravel() for group in groups])
            known = np.unique(uncertainty)
            edges = np.unique(np.quantile(uncertainty, np.linspace(0, 1, CANDIDATES + 1), method="higher"))
            above = np.searchsorted(known, edges[edges > known[0]])
            # in the middle between neighbours: equal to a score, a threshold would decide by its last bit
            candidates = np.concatenate([[-np.inf], (known[above - 1] + known[above]) / 2, [np.inf]])
            self._candidates.append(candidates)
            self._ranks.append(np.searchsorted(candidates, uncertainty, side="right"))

    def within(self, budget: float) -> Point:
        """Find the largest accuracy at a mean cost of at most `budget`; the least cost of all if none is as cheap."""
        return self._solve(lambda line: line.cost <= budget * (1 + 1e-12), _most_accurate, dearer=False)

    def reaching(self, accuracy: float) -> Point:
        """Find the least mean cost at an accuracy of at least `accuracy`; the largest accuracy if none reaches it."""
        return self._solve(lambda line: line.accuracy >= accuracy - 1e-12, _cheapest, dearer=True)

    def _solve(self, allowed: Allowed, worth: Worth, *, dearer: bool) -> Point:
        """Find the best point that keeps a constraint, at the price where it is just kept.

        dearer: whether a point that keeps the constraint allows a higher price (else a lower one).
        """
        found: list[tuple[bool, float, Point]] = []
        for start in (*map(self._shares, STARTS), [0] * (self.exits - 1)):
            low, high = (np.log(price / self._costliest) for price in PRICES)
            for _ in range(BISECTIONS):
                price = (low + high) / 2
                chosen = self._climb(start, _trade(np.exp(price)))
                keeps = bool(allowed(self._here(chosen))[0])
                if keeps:
                    chosen = self._climb(chosen, lambda line: np.where(allowed(line), worth(line), -np.inf))
                here = self._here(chosen)
                # where nothing keeps the constraint, what comes nearest to it
                rank = worth(here) if keeps else (_most_accurate(here) if dearer else _cheapest(here))
                found.append((keeps, float(rank[0]), self._point(chosen)))
                low, high = (price, high) if keeps == dearer else (low, price)
        return max(found, key=lambda one: one[:2])[2]

    def _climb(self, start: list[int], worth: Worth) -> list[int]:
        """The best candidate of each exit in turn, last exit first, until none improves."""
        chosen, best = list(start), -np.inf
        for _ in range(SWEEPS):
            before = best
            for k in reversed(range(self.exits - 1)):
                values = worth(self._line(chosen, k))
                if values.max() > best:  # a tie stays where it is
                    best = float(values.max())
                    chosen[k] = int(values.argmax())
            if best <= before:
                break
        return chosen

    def _line(self, chosen: list[int], k: int) -> Line:
        reaches = np.ones(self._hits.shape[1], dtype=bool)
        for j in range(k):
            reaches &= self._ranks[j] > chosen[j]
        rows = np.flatnonzero(reaches)
        stays = self._leaving(chosen, k + 1)[rows]
        ends = self._leaving(chosen, 0)
        ends[rows] = stays
        wrong = ~self._hits[ends, np.arange(len(ends))]
        leaving_wrong = wrong.copy()
        leaving_wrong[rows] = ~self._hits[k, rows]
        length = len(self._candidates[k])
        saved = (self._costs[k, rows] - self._costs[stays, rows]) * self._weights[rows]
        cost = np.bincount(self._ranks[k][rows], saved, minlength=length)
        accuracy = np.zeros(length)
        none_leave, begin = 0.0, 0
        for (attacks, samples), weight in self._shapes:
            part = slice(begin, begin + attacks * samples)
            begin += attacks * samples
            mine, then = (array[part].reshape(attacks, samples) for array in (wrong, leaving_wrong))
            ranks = self._ranks[k][part].reshape(attacks, samples)
            none_leave += weight * float((~mine.any(axis=0)).mean())
            accuracy += np.bincount(ranks.ravel(), _gains(ranks, mine, then).ravel(), length) * (weight / samples)
        return Line(none_leave + np.cumsum(accuracy), self._mean_cost(ends) + np.cumsum(cost))

    def _leaving(self, chosen: list[int], first: int) -> np.ndarray:
        """Exit of every sample when exits before `first` let nobody go."""
        exits = np.full(self._hits.shape[1], self.exits - 1)
        for k in range(self.exits - 2, first - 1, -1):
            exits[self._ranks[k] <= chosen[k]] = k
        return exits

    def _mean_cost(self, exits: np.ndarray) -> float:
        """Weighted mean MACs of the samples when they leave there."""
        return float(self._weights @ self._costs[exits, np.arange(len(exits))])

    def _here(self, chosen: list[int]) -> Line:
        """Accuracy and cost of one choice, as a line of one candidate."""
        exits = self._leaving(chosen, 0)
        right = self._hits[exits, np.arange(len(exits))]
        accuracy, begin = 0.0, 0
        for (attacks, samples), weight in self._shapes:
            part = right[begin : begin + attacks * samples].reshape(attacks, samples)
            begin += attacks * samples
            accuracy += weight * float(part.all(axis=0).mean())
        return Line(np.array([accuracy]), np.array([self._mean_cost(exits)]))

    def _point(self, chosen: list[int]) -> Point:
        values = tuple(float(candidates[index]) for candidates, index in zip(self._candidates, chosen, strict=True))
        here = self._here(chosen)
        return Point(values, float(here.accuracy[0]), float(here.cost[0]))

    def _shares(self, ratio: float) -> list[int]:
        """A start: of the samples, shares proportional to ratio**k leave at exit k."""
        shares = ratio ** np.arange(self.exits)
        shares /= shares.sum()
        chosen: list[int] = []
        runs = np.ones(self._hits.shape[1], dtype=bool)
        for k in range(self.exits - 1):
            ranks = np.sort(self._ranks[k][runs])
            leave = min(int(shares[k] * len(runs)), len(ranks))
            chosen.append(int(ranks[leave]) - 1 if leave < len(ranks) else len(self._candidates[k]) - 1)
            runs &= self._ranks[k] > chosen[k]
        return chosen


def _trade(price: float) -> Worth:
    return lambda line: line.accuracy - price * line.cost


def _most_accurate(line: Line) -> np.ndarray:
    # of equally accurate ones the cheapest: below the weight of any sample
    return line.accuracy - 1e-18 * line.cost


def _cheapest(line: Line) -> np.ndarray:
    return -line.cost


def _gains(ranks_BN: np.ndarray, wrong_BN: np.ndarray, leaving_wrong_BN: np.ndarray) -> np.ndarray:
    """Change of "right under all attacks" when the sample begins to leave under attack b, in the order of the ranks."""
    if len(ranks_BN) == 1:
        return wrong_BN.astype(float) - leaving_wrong_BN
    order = np.argsort(ranks_BN, axis=0, kind="stable")
    change = np.take_along_axis(leaving_wrong_BN.astype(int) - wrong_BN, order, axis=0)
    start = wrong_BN.sum(axis=0, keepdims=True)
    wrong = np.concatenate([start, start + np.cumsum(change, axis=0)])
    gains = np.empty(ranks_BN.shape)
    np.put_along_axis(gains, order, np.diff((wrong == 0).astype(float), axis=0), axis=0)
    return gains
