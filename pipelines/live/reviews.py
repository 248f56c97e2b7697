"""The random share of events that are published for review without an alert, so that labels come from them too."""

import numpy as np
import xxhash
from numpy.typing import NDArray


def is_drawn(
    partition: NDArray[np.integer], offset: NDArray[np.integer], topic: str, share: float
) -> NDArray[np.bool_]:
    """Which events are drawn, shape (n,): a hash of the event's place decides, so every replica and replay agrees.

    Who sends an event chooses its id, but not its place.

    Args:
        partition, offset: places of events in `topic`, shape (n,).
        share: the share of all events that is drawn, between 0 and 1.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    """
    topic_hash = np.uint64(xxhash.xxh3_64_intdigest(topic.encode()))
    place = (partition.astype(np.uint64) << np.uint64(48)) ^ offset.astype(np.uint64)
    mixed = (place ^ topic_hash) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    drawn: NDArray[np.bool_] = (mixed ^ (mixed >> np.uint64(31))) < np.uint64(int(share * 2**64))
    return drawn
