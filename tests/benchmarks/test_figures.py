import math

import pytest

from benchmarks.figures import percentile, ratios, timely_share


def test_a_percentile_is_a_value_that_was_seen():
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([3.0], 0.01) == 3.0
    assert math.isnan(percentile([], 0.5))


def test_who_failed_was_not_in_time():
    assert timely_share([50, 100, 101], 1, 100) == 0.5
    assert math.isnan(timely_share([], 0, 100))


def test_ratios_are_those_of_rounds_side_by_side():
    assert ratios([2, 9, 4], [1, 3, 4]) == [2, 1, 3]


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [0.0]), ([math.nan], [1.0]), ([1.0], [math.nan])])
def test_no_ratio_to_nothing(ours, theirs):
    assert ratios(ours, theirs) == []
