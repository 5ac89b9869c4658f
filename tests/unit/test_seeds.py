"""Named streams: stable, apart from one another, and not the global one."""

import torch

from rdi.seeds import derive, generator


def test_seeds_are_the_same_on_every_machine():
    # the first 63 bits of sha256("0/weights") and so on; a change of these numbers changes every stored run
    assert derive(0, "weights") == 133441691874178746
    assert derive(7, "step", 3) == 1825947944158770574
    assert 0 <= derive(123, "a") < 2**63


def test_names_and_seeds_make_different_streams():
    seeds = {derive(seed, *names) for seed in (0, 1) for names in ((), ("a",), ("b",), ("a", 1), ("a", 2))}
    assert len(seeds) == 10


def test_a_stream_starts_at_the_same_place_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    first, again = (torch.rand(4, generator=generator("cpu", 3, "step", 7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=generator("cpu", 3, "step", 8)))
    assert torch.equal(torch.get_rng_state(), state)
