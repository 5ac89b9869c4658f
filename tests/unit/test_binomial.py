"""Tails and intervals of the binomial distribution, against scipy's own tests."""

import pytest
from scipy.stats import binom, binomtest

from rdi.binomial import at_least, at_most, wilson


@pytest.mark.parametrize("total", [1, 7, 400, 10_000])
def test_tails_and_intervals_are_those_of_scipys_binomial_test(total):
    for count in {0, 1, total // 3, total - 1, total}:
        for share in (0.001, 0.05, 0.5, 0.99):
            assert at_most(count, total, share) == pytest.approx(binom.cdf(count, total, share), rel=1e-9, abs=1e-300)
            expected = binomtest(count, total, share, alternative="greater").pvalue
            assert at_least(count, total, share) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        test = binomtest(count, total)
        for level in (0.95, 0.99):
            assert wilson(count / total, total, level) == pytest.approx(
                test.proportion_ci(level, "wilson"), rel=1e-12, abs=0
            )
