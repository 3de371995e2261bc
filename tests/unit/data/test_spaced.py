"""A few of many: distinct, in order, from the first to the last."""

from itertools import pairwise

import pytest

from crossearth.data.common.spaced import evenly


@pytest.mark.parametrize(("num", "most"), [(0, 3), (1, 3), (3, 3), (4, 3), (7, 5), (1000, 7)])
def test_a_few_of_many(num: int, most: int) -> None:
    chosen = evenly(range(num), most)
    assert len(set(chosen)) == min(num, most) and chosen == sorted(chosen)
    if num:
        assert (chosen[0], chosen[-1]) == (0, num - 1)
        steps = [after - before for before, after in pairwise(chosen)]
        assert max(steps, default=1) - min(steps, default=1) <= 1


def test_one_of_many_is_the_first() -> None:
    assert evenly("abc", 1) == ["a"]
