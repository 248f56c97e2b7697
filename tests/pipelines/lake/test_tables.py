import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import polars as pl
import pytest

from pipelines.contracts.stream import Field, Stream
from pipelines.errors import LakeError
from pipelines.lake.tables import Lake
from tests.pipelines.payments import payments_stream

TOPIC = "p.events"


@pytest.fixture
def stream() -> Stream:
    return payments_stream("p")


def rows(lake: Lake, partition: int, first: int, end: int) -> pl.DataFrame:
    offsets = list(range(first, end))
    n = len(offsets)
    return lake.frame(
        "events",
        {
            "partition": [partition] * n,
            "offset": offsets,
            "arrival_ms": offsets,
            "event_id": [f"{partition}-{o}" for o in offsets],
            "event_time_ms": offsets,
            **{name: ["x"] * n for name in (*lake.stream.entities, *lake.stream.categories)},
            **{name: [1.5] * n for name in lake.stream.numbers},
        },
    )


def test_a_record_enters_the_lake_once_however_often_it_is_appended(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    assert lake.append("events", rows(lake, 0, 0, 10), topic=TOPIC, through={0: 9}) == 10
    assert lake.append("events", rows(lake, 0, 0, 10), topic=TOPIC, through={0: 9}) == 0
    assert lake.append("events", rows(lake, 0, 5, 15), topic=TOPIC, through={0: 14}) == 5
    assert lake.read("events")["offset"].to_list() == list(range(15))


def test_several_partitions_go_in_one_commit_each_with_its_own_position(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    both = pl.concat([rows(lake, 0, 0, 3), rows(lake, 2, 0, 4)])
    lake.append("events", both, topic=TOPIC, through={0: 2, 2: 3}, arrivals={0: 7, 2: 9})
    assert lake.positions() == {(TOPIC, 0): 3, (TOPIC, 2): 4}
    assert lake.arrivals() == {(TOPIC, 0): 7, (TOPIC, 2): 9}
    assert lake.version() == "events=1 labels=- refused=- scores=- places=-"


def test_an_append_without_rows_notes_how_far_it_came(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    assert lake.append("events", rows(lake, 0, 0, 0), topic=TOPIC, through={0: 41}, arrivals={0: 5}) == 0
    assert lake.positions() == {(TOPIC, 0): 42}
    assert lake.read("events").is_empty()


def test_writers_at_once_write_every_row_once(tmp_path: Path, stream: Stream) -> None:
    n, failures = 60, []

    def write(seed: int) -> None:
        lake, rng = Lake(tmp_path, stream), random.Random(seed)
        try:
            while (at := lake.positions().get((TOPIC, 0), 0)) < n:
                end = min(n, at + rng.randint(1, 12))
                lake.append("events", rows(lake, 0, at, end), topic=TOPIC, through={0: end - 1})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert Lake(tmp_path, stream).read("events")["offset"].to_list() == list(range(n))


def test_writers_that_create_a_table_at_once_all_succeed(tmp_path: Path, stream: Stream) -> None:
    for k in range(20):
        start = threading.Barrier(4)

        def write(partition: int, lake: Lake, start: threading.Barrier) -> int:
            frame = rows(lake, partition, 0, 2)
            start.wait(60)
            return lake.append("events", frame, topic=TOPIC, through={partition: 1})

        lakes = [Lake(tmp_path / str(k), stream) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(write, range(4), lakes, [start] * 4)) == [2] * 4
        assert lakes[0].read("events").height == 8


def test_a_field_that_joins_the_stream_is_missing_in_older_rows(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    lake.append("events", rows(lake, 0, 0, 2), topic=TOPIC, through={0: 1})
    wider = Lake(tmp_path, msgspec.structs.replace(stream, fields=(*stream.fields, Field("device", "category"))))
    assert wider.read("events")["device"].to_list() == [None, None]
    wider.append("events", rows(wider, 0, 2, 3), topic=TOPIC, through={0: 2})
    assert wider.read("events")["device"].to_list() == [None, None, "x"]
    assert lake.append("events", rows(lake, 0, 3, 4), topic=TOPIC, through={0: 3}) == 1


def test_a_field_that_changes_its_type_is_refused_with_the_mend(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    lake.append("events", rows(lake, 0, 0, 2), topic=TOPIC, through={0: 1})
    fields = tuple(Field("amount", "category") if f.name == "amount" else f for f in stream.fields)
    other = Lake(tmp_path, msgspec.structs.replace(stream, fields=fields))
    with pytest.raises(LakeError, match="give the stream new topics"):
        other.append("events", rows(other, 0, 2, 3), topic=TOPIC, through={0: 2})
    assert lake.read("events").height == 2


def test_a_field_named_like_a_column_of_the_lake_is_refused(tmp_path: Path, stream: Stream) -> None:
    clashing = msgspec.structs.replace(stream, fields=(*stream.fields, Field("offset", "number")))
    with pytest.raises(LakeError, match=r"the field offset of stream payments .* rename the field"):
        Lake(tmp_path, clashing)


def test_rows_of_a_recreated_topic_do_not_join_those_of_the_old_one(tmp_path: Path, stream: Stream) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    lake = Lake(tmp_path, stream)
    lake.append("events", rows(lake, 0, 0, 2), topic=TOPIC, through={0: 1})  # as a version without ids wrote it
    lake.bind({TOPIC: first})
    lake.append("events", rows(lake, 0, 2, 4), topic=TOPIC, through={0: 3})
    lake.bind({TOPIC: first})
    late = Lake(tmp_path, stream)
    with pytest.raises(LakeError, match=r"filled from another topic named p.events, .* run `unmask recover`"):
        late.bind({TOPIC: second})
    with pytest.raises(LakeError, match="filled from another topic"):
        late.append("events", rows(late, 0, 4, 9), topic=TOPIC, through={0: 8})
    assert lake.read("events").height == 4


def test_a_lake_of_a_newer_version_is_refused(tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("pipelines.lake.tables.FORMAT", 99)
        lake = Lake(tmp_path, stream)
        lake.append("events", rows(lake, 0, 0, 2), topic=TOPIC, through={0: 1})
    with pytest.raises(LakeError, match=r"events has format 99, .* newer version of Unmask"):
        lake.read("events")


def test_a_damaged_table_is_named(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    lake.append("events", rows(lake, 0, 0, 2), topic=TOPIC, through={0: 1})
    for part in lake.folder.glob("events/*.parquet"):
        part.unlink()
    with pytest.raises(LakeError, match="events: cannot be read"):
        lake.read("events")


def test_missing_numbers_and_texts_come_back_as_missing(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    holed = rows(lake, 0, 0, 1).with_columns(amount=pl.lit(None, pl.Float64), country=pl.lit(None, pl.String))
    lake.append("events", holed, topic=TOPIC, through={0: 0})
    assert lake.read("events", columns=["amount", "country"]).row(0) == (None, None)


def test_tidying_merges_files_and_keeps_rows_positions_and_what_an_ingest_adds_meanwhile(
    tmp_path: Path, stream: Stream
) -> None:
    lake = Lake(tmp_path, stream)
    assert lake.tidy("events", keep=timedelta(0)) is None
    topic = stream.topic("events")
    lake.bind({topic: str(uuid.uuid4())})
    for first in range(0, 100, 10):
        lake.append(
            "events", rows(lake, 0, first, first + 10), topic=topic, through={0: first + 9}, arrivals={0: first}
        )
    before, told = lake.read("events"), (lake.positions(), lake.arrivals(), lake.identity(["events"]))
    adding = threading.Thread(
        target=lambda: [
            Lake(tmp_path, stream).append("events", rows(lake, 1, at, at + 1), topic=topic, through={1: at})
            for at in range(30)
        ]
    )
    adding.start()
    tidied = [lake.tidy("events", keep=timedelta(days=7)) for _ in range(5)]
    adding.join()
    assert all(tidied)
    assert lake.tidy("events", keep=timedelta(0)) is not None
    after = lake.read("events")
    assert after.filter(pl.col("partition") == 0).equals(before)
    assert after.filter(pl.col("partition") == 1)["offset"].to_list() == list(range(30))
    assert lake.positions() == told[0] | {(topic, 1): 30}
    assert lake.arrivals() == told[1]
    assert lake.append("events", rows(lake, 0, 0, 100), topic=topic, through={0: 99}) == 0
    assert len(list((lake.folder / "events").glob("*.parquet"))) == 1


def test_tidying_does_not_change_what_a_table_is(tmp_path: Path, stream: Stream) -> None:
    lake = Lake(tmp_path, stream)
    for first in (0, 10):
        lake.append("events", rows(lake, 0, first, first + 10), topic=TOPIC, through={0: first + 9})
    told = lake.identity(["events"])
    lake.tidy("events", keep=timedelta(0))
    assert lake.identity(["events"]) == told
    lake.append("events", rows(lake, 0, 20, 21), topic=TOPIC, through={0: 20})
    assert lake.identity(["events"]) != told
