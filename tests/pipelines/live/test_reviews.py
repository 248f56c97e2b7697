"""The random review share: how many are drawn, that nobody can see a pattern in it, and that it is always the same."""

import numpy as np
import pytest

from pipelines.live.reviews import is_drawn

N = 400_000


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3])
def test_as_many_are_drawn_as_the_share_says_of_each_partition_and_of_any_stride(share: float) -> None:
    offset = np.arange(N)
    for partition in (0, 1, 31):
        drawn = is_drawn(np.full(N, partition, np.int32), offset, "payments.events", share)
        for part in (drawn, drawn[: N // 2], drawn[1::2], drawn[7::10]):
            bound = 5 * (share * (1 - share) * len(part)) ** 0.5
            assert abs(part.sum() - share * len(part)) < bound
        pairs = np.count_nonzero(drawn[1:] & drawn[:-1])
        assert abs(pairs - share**2 * N) < 5 * (share**2 * N) ** 0.5 + 3


def test_the_place_alone_decides() -> None:
    partition, offset = np.repeat(np.arange(4, dtype=np.int32), 5_000), np.tile(np.arange(5_000), 4)
    drawn = is_drawn(partition, offset, "s.events", 0.02)
    order = np.random.default_rng(1).permutation(len(drawn))
    assert (is_drawn(partition[order], offset[order], "s.events", 0.02) == drawn[order]).all()
    one_by_one = [is_drawn(partition[i : i + 1], offset[i : i + 1], "s.events", 0.02)[0] for i in range(500)]
    assert (drawn[:500] == one_by_one).all()
    assert offset[drawn][:4].tolist() == FIRST, "another version would draw other events at a change"
    assert (is_drawn(partition, offset, "t.events", 0.02) != drawn).any()
    assert (drawn <= is_drawn(partition, offset, "s.events", 0.04)).all()  # a larger share only adds events


FIRST = [149, 179, 201, 214]
