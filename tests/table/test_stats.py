import pytest
from scipy import stats

from mimbench.table.stats import estimate, paired


@pytest.mark.parametrize("values", [[1.0, 2.0], [41.2, 40.1, 43.9], [0.1, 0.4, 0.2, 0.9, 0.3, 0.3]])
def test_interval_is_scipys(values):
    ours = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=stats.tmean(values), scale=stats.sem(values))
    assert ours.interval == pytest.approx((low, high), rel=1e-12)
    assert ours.std == pytest.approx(stats.tstd(values))
    assert ours.half_width == pytest.approx((high - low) / 2)


def test_one_value_has_no_spread():
    ours = estimate([3.0])
    assert (ours.mean, ours.n, ours.std, ours.interval, ours.half_width) == (3.0, 1, None, None, None)


@pytest.mark.parametrize("values", [[8.33, 8.33], [0.1 + 0.2, 0.3], [0.0] * 3])
def test_equal_values_have_no_interval(values):
    ours = estimate(values)
    assert ours.interval is ours.half_width is None and ours.std == pytest.approx(0.0)
    delta = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 5.0))
    assert delta.n == len(values) and delta.interval is None


def test_pairing_removes_what_seeds_share_and_ignores_the_others():
    row, baseline = {0: 11.0, 1: 21.0, 2: 31.5, 7: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0, 8: -99.0}
    delta = paired(row, baseline)
    assert delta.values == (1.0, 1.0, 1.5)
    assert delta.interval[0] > 0
    assert paired({0: 1.0}, {1: 1.0}) is None
