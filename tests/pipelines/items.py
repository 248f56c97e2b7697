"""Records with their places one by one: what a `Run` holds column by column."""

from collections.abc import Iterable
from typing import NamedTuple

from pipelines.order import NO_RECORDS, Key, Run, Source, SourceClock
from pipelines.record import Received


class Item(NamedTuple):
    """A record with its place. `out_of_turn`: it came after its natural place was passed, so it has a later one."""

    key: Key
    source: Source
    arrival_ms: int
    record: Received
    out_of_turn: bool = False


def run_of(items: Iterable[Item]) -> Run:
    """The items as a run, in this order."""
    runs = [NO_RECORDS]
    for item in items:
        lag_ms = 0 if item.out_of_turn else item.key.effective_ms - item.arrival_ms
        clock = SourceClock(item.source, lag_ms=lag_ms, arrival_ms=item.arrival_ms)
        run = clock.run([item.record._replace(timestamp_ms=0)])
        runs.append(run.placed({0: item.key}) if item.out_of_turn else run)
    return Run.concat(runs)


def items_of(run: Run) -> list[Item]:
    """The records of a run. What a run does not keep of a record is blank."""
    out_of_turn = run.out_of_turn.tolist()
    return [
        Item(
            run.place_of(row),
            Source(int(run.kind[row]), int(run.partition[row])),
            int(run.arrival_ms[row]),
            Received(
                "", int(run.partition[row]), int(run.offset[row]), 0, run.key[row], run.value[row], run.unreadable[row]
            ),
            out_of_turn[row],
        )
        for row in range(len(run))
    ]
