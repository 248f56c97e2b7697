"""The audit of the alerts topic: each score over the threshold is there in full, counted, listed or suppressed."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.contracts.contract import UNDECODABLE
from pipelines.contracts.messages import (
    Alert,
    AlertOverflow,
    AlertRecord,
    AlertUpdate,
    Progress,
    Review,
    SuppressedAlert,
    decode_alert,
)
from pipelines.record import Received


@dataclass
class AlertCounts:
    """Scores over the threshold by what was published about them, over all partitions that could be checked.

    - `n_over`: scores over the threshold.
    - `n_full`, `n_counted`, `n_listed`, `n_suppressed`: with a full alert; in updates of a group; as overflow; of a
      suppressed entity. What the progress record says is still to be published is counted, too.
    - `n_reviews`: events drawn for review, which are not over the threshold.
    - `unchecked`: partitions of which Kafka does not have all alerts or scores any more.
    """

    n_over: int = 0
    n_full: int = 0
    n_counted: int = 0
    n_listed: int = 0
    n_suppressed: int = 0
    n_reviews: int = 0
    unchecked: int = 0

    @property
    def holds(self) -> bool:
        """Whether every score over the threshold has its record, once."""
        return self.n_over == self.n_full + self.n_counted + self.n_listed + self.n_suppressed

    def words(self) -> str:
        """One line of text.

        >>> AlertCounts(9, 5, 2, 1, 1, 3).words()
        '9 scores over the threshold = 5 alerts in full + 2 counted in groups + 1 listed + 1 suppressed; 3 reviews'
        """
        sign = "=" if self.holds else "are NOT"
        unchecked = f"; {self.unchecked:,} partitions could not be checked" if self.unchecked else ""
        return (
            f"{self.n_over:,} scores over the threshold {sign} {self.n_full:,} alerts in full + {self.n_counted:,} "
            f"counted in groups + {self.n_listed:,} listed + {self.n_suppressed:,} suppressed; "
            f"{self.n_reviews:,} reviews{unchecked}"
        )

    def add(self, n_over: int, records: Iterable[Received], progress: Progress) -> None:
        """Add a partition: its scores over the threshold before the progress, and all records on its alerts topic."""
        end, groups = progress.next_offset, dict[str, int]()
        full, listed, suppressed, reviews = set[int](), set[int](), set[int](), set[int]()
        for one in _readable(records):
            match one:
                case Alert():
                    full.add(one.source.offset)
                case SuppressedAlert():
                    suppressed.add(one.source.offset)
                case Review():
                    reviews.add(one.source.offset)
                case AlertOverflow():
                    listed |= {event.offset for event in one.events}
                case AlertUpdate() if one.source.offset < end:
                    groups[one.group_id] = max(groups.get(one.group_id, 1), one.count)
        if (memory := progress.alert_memory) is not None:
            groups |= {group.group_id: group.count for group in memory.groups}
            listed |= {event.offset for event in memory.day.pending} if memory.day else set()
        self.n_over += n_over
        self.n_counted += sum(count - 1 for count in groups.values())
        self.n_full += sum(offset < end for offset in full)
        self.n_listed += sum(offset < end for offset in listed)
        self.n_suppressed += sum(offset < end for offset in suppressed)
        self.n_reviews += sum(offset < end for offset in reviews)


def _readable(records: Iterable[Received]) -> Iterable[AlertRecord]:
    for record in records:
        try:
            yield decode_alert(record.value)
        except UNDECODABLE:
            continue  # of another program
