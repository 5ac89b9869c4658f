"""The break-even on given seconds: curves, plans, and what gets measured when."""

import itertools

import pytest
import torch

from rdi import compaction_cost
from rdi.compaction_cost import Curve, Planner, StageTimes, Table, cheapest, measure
from rdi.exits.compact import close_up, closed_up, staying, take
from rdi.thresholds import Entropy, ThresholdPolicy


def test_a_curve_is_straight_between_and_beyond_what_was_measured():
    curve = Curve([1, 4, 16], [2.0, 5.0, 17.0])
    assert [curve(n) for n in (0, 0.5, 1, 2, 4, 10, 16, 20)] == [0, 1, 2, 3, 5, 11, 17, 21]


def test_a_larger_batch_never_takes_less():
    assert [Curve([1, 4], [2.0, 1.0])(n) for n in (1, 2, 4, 8)] == [2, 2, 2, 2]


def table(parts, decision=0.0, gather=0.0):
    """Seconds that follow the samples: parts per sample, one decision whatever the size, a gather per sample."""
    return Table(
        {
            size: StageTimes(tuple(part * size for part in parts), decision, (gather * size,) * (len(parts) - 1))
            for size in (1, 4, 16)
        }
    )


def seconds(costs, samples, shares, decisions):
    """What a plan is expected to take, exit by exit."""
    total, batch, running = 0.0, samples, 1.0
    for k in range(costs.exits):
        total += costs.run(k, k + 1, batch)
        running -= shares[k]
        if k < costs.exits - 1 and decisions[k]:
            after = samples * running
            total += costs.decision(batch) + costs.gather(k, min(after, batch - after))
            batch = after
    return total


@pytest.mark.parametrize("shares", [(0.25,) * 4, (0.7, 0.0, 0.2, 0.1), (0.0, 0.0, 0.1, 0.9), (0.0, 0.0, 0.0, 1.0)])
@pytest.mark.parametrize("decision", [0.0, 3.0, 30.0])
def test_the_plan_is_the_cheapest_of_all(shares, decision):
    costs = table((1.0, 3.0, 2.0, 1.0), decision, gather=0.1)
    plan = cheapest(costs, 12, shares)
    everything = [seconds(costs, 12, shares, decisions) for decisions in itertools.product((False, True), repeat=3)]
    assert plan.seconds == pytest.approx(min(everything))
    assert seconds(costs, 12, shares, plan.decisions) == pytest.approx(plan.seconds)
    assert plan.seconds_without == pytest.approx(12 * 7)


def test_taking_samples_out_pays_when_the_rest_of_the_network_saves_more_than_the_copy():
    costs = table((1.0, 1.0, 1.0), gather=1.5)
    assert costs.pays(0, samples=8, stay=6)  # saves 2 * 2, moves 2 into the gaps of those who left: 2 * 1.5
    assert not costs.pays(1, samples=8, stay=6)  # saves 2
    assert costs.pays(0, samples=8, stay=1)  # saves 2 * 7, moves 1


def test_a_network_without_early_exits_has_an_empty_plan():
    assert cheapest(table((2.0,)), 4, (1.0,)).decisions == ()


@pytest.fixture
def planner(tiny):
    return Planner(tiny(), ThresholdPolicy(Entropy(), [0.5, 0.5]))


@pytest.mark.parametrize(
    ("grows", "samples", "expected"),
    [
        (0.5, 1, [1]),
        (0.5, 3, [1, 4]),
        (0.5, 16, [1, 4, 16]),
        (0.5, 100, [1, 4, 16, 64]),
        (0.5, 1024, [1, 4, 16, 64, 256, 1024]),
        (1.0, 1024, [1, 4]),  # proportional from the start: a line goes through the rest
    ],
)
def test_powers_of_four_are_measured_once_up_to_the_batch_at_hand(planner, monkeypatch, grows, samples, expected):
    sizes = []

    def lap(model, policy, images):
        sizes.append(len(images))
        return StageTimes((len(images) ** grows,) * 3, 0.0, (0.0, 0.0))

    monkeypatch.setattr(compaction_cost, "measure", lap)
    images = torch.zeros(1, 1, 8, 8)
    for _ in range(2):
        planner.plan(images, samples)
    assert sizes == expected
    planner.plan(images, 1)
    assert sizes == expected
    planner.plan(torch.zeros(1, 1, 9, 9), 1)
    assert sizes == [*expected, 1]


def test_the_smallest_of_the_repeats_counts(tiny):
    ticks = itertools.count()
    warm = itertools.accumulate(1.0 if next(ticks) < 40 else 0.5 for _ in itertools.count())
    lap = measure(tiny(), ThresholdPolicy(Entropy(), [0.5, 0.5]), torch.zeros(2, 1, 8, 8), lambda: next(warm))
    assert lap == StageTimes((0.5,) * 3, 0.5, (0.5, 0.5))


def test_measuring_leaves_the_random_numbers_alone(planner):
    before = torch.get_rng_state()
    with torch.no_grad():
        planner.plan(torch.zeros(1, 1, 8, 8), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_shares_move_to_what_is_seen(planner):
    planner.observe(torch.full((64,), 2))
    planner._learn()
    assert planner.shares == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert sum(planner.shares) == pytest.approx(1)


def test_who_stays_leaves_nowhere():
    assert staying(torch.tensor([True, False, True])).tolist() == [1]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rows_are_taken_in_their_memory_format(memory_format):
    features = torch.arange(4 * 3 * 2 * 5.0).view(4, 3, 2, 5).contiguous(memory_format=memory_format)
    taken = take(features, torch.tensor([0, 3]))
    assert torch.equal(taken, features[[0, 3]])
    assert taken.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stay", [[0], [5], [0, 1, 2], [3, 4, 5], [0, 2, 3, 5], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_gaps_are_closed_with_as_few_moves_as_rows_that_left(stay, memory_format):
    features = torch.arange(6 * 3 * 2 * 5.0).view(6, 3, 2, 5).contiguous(memory_format=memory_format)
    before = features.clone()
    gone = torch.ones(6, dtype=torch.bool).index_fill_(0, torch.tensor(stay), False)
    holes, movers = closed_up(gone, torch.tensor(stay))
    rows = close_up(torch.arange(6), holes, movers, len(stay))
    closed = close_up(features, holes, movers, len(stay))
    assert sorted(rows.tolist()) == stay
    assert torch.equal(closed, before[rows])
    assert closed.is_contiguous(memory_format=memory_format)
    assert len(movers) <= min(len(stay), 6 - len(stay))


def test_what_is_seen_is_read_at_every_doubling_and_then_every_64_batches(planner, monkeypatch):
    monkeypatch.setattr(
        compaction_cost, "measure", lambda model, policy, images: StageTimes((1.0,) * 3, 0.0, (0.0, 0.0))
    )
    decisions, learn = [], planner._learn
    monkeypatch.setattr(planner, "_learn", lambda: (decisions.append(planner._batches), learn()))
    images = torch.zeros(1, 1, 8, 8)
    for _ in range(260):
        planner.plan(images, 1)
        planner.observe(torch.tensor([2]))
    assert decisions == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    assert planner.shares[2] > 0.8
