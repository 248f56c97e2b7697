"""The lake: Delta tables of the records in Kafka, each record once. The only file that imports deltalake."""

import copy
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from pipelines.contracts.stream import Stream
from pipelines.errors import LakeError
from pipelines.features.draft import sync

FORMAT = 2  # of the tables; 1 noted no topic ids
TABLES = ("events", "labels", "refused", "scores", "places")
_FILLED_FROM = (("events", "events"), ("labels", "labels"), ("scores", "scores"), ("places", "progress"))
_ATTEMPTS = 20
_READ_AHEAD = {"batch_readahead": 4, "fragment_readahead": 2}  # pyarrow buffers gigabytes by default
_APP_FORMAT = "unmask/format"
_Types = dict[str, type[pl.DataType]]
_ARROW = {
    pl.Int8: pa.int8(),
    pl.Int32: pa.int32(),
    pl.Int64: pa.int64(),
    pl.Float64: pa.float64(),
    pl.String: pa.string(),
    pl.Binary: pa.binary(),
    pl.Boolean: pa.bool_(),
}


class Tidied(NamedTuple):
    """Files of a table before and after it was tidied, and files deleted."""

    before: int
    after: int
    deleted: int


class _Shape(NamedTuple):
    """Columns of a table, and those that identify the record of a row in its topic."""

    columns: _Types
    place: tuple[str, str]


class Lake:
    """Delta tables of one stream, in a folder named after its topics.

    A record enters a table once, even with several writers and after a crash: every append stores, per partition, the
    last offset that it covers as a Delta app transaction, and skips records that an earlier append covered.

    Args:
        root: folder of all lakes.
        stream: the stream of the lake.

    Raises:
        LakeError: a field of the stream has a name that the lake reserves.
    """

    def __init__(self, root: Path, stream: Stream) -> None:
        self.folder = Path(root) / stream.topics
        self.stream = stream
        self._shapes = _shapes(stream)
        self._topic_ids: dict[str, int] = {}
        self._pinned: Mapping[str, DeltaTable | None] | None = None

    def bind(self, topic_ids: Mapping[str, str]) -> None:
        """Set the Kafka topics that rows come from: name -> id (a UUID). Every table stores the id of its topic.

        Raises:
            LakeError: a table has rows of another topic with this name, or was written by a newer version of Unmask.
        """
        self._topic_ids = {topic: _low_bits(topic_id) for topic, topic_id in topic_ids.items()}
        for table, kind in _FILLED_FROM:
            delta, topic = self._open(table), self.stream.topic(kind)
            if delta is not None:
                self._check_topic(delta, table, topic)

    def is_filled_from(self, table: str, topic: str, topic_id: str | None) -> bool:
        """Whether the rows of a table come from the topic with this id; True if the id is unknown."""
        delta = self._open(table)
        noted = None if delta is None else delta.transaction_version(_app_topic_id(topic))
        return noted is None or topic_id is None or noted == _low_bits(topic_id)

    def columns(self, table: str) -> list[str]:
        """Columns of a table on disk; empty if it does not exist yet."""
        delta = self._open(table)
        return [] if delta is None else [field.name for field in delta.schema().fields]

    def reset(self, table: str, topic: str, through: Mapping[int, int], topic_id: str | None) -> None:
        """Store other offsets for a recreated topic, in a table that may have rows of both topics: scores, places."""
        delta = self._open_or_create(table)
        marks = [Transaction(_app(topic, p), last) for p, last in through.items()]
        if topic_id is not None:
            marks.append(Transaction(_app_topic_id(topic), _low_bits(topic_id)))
        empty, properties = self._arrow(table).empty_table(), CommitProperties(app_transactions=marks)
        try:
            write_deltalake(delta, empty, mode="append", commit_properties=properties)
        except (DeltaError, OSError) as error:
            raise LakeError(f"{self.folder / table}: cannot be written ({type(error).__name__}: {error})") from error
        self._sync(table, delta.version())

    def frame(self, table: str, data: Mapping[str, Any] | Sequence[tuple]) -> pl.DataFrame:
        """A frame with the types of a table, from columns or row tuples (in its order, without `topic`)."""
        types = {name: kind for name, kind in self._shapes[table].columns.items() if name != "topic"}
        if isinstance(data, Mapping):
            return pl.DataFrame(data, schema_overrides=types)
        return pl.DataFrame(data, schema=types, orient="row")

    def append(
        self,
        table: str,
        rows: pl.DataFrame,
        *,
        topic: str,
        through: Mapping[int, int],
        arrivals: Mapping[int, int] | None = None,
    ) -> int:
        """Append rows of the records of `topic` up to the offsets `through` (partition -> last offset).

        All partitions are written in one commit, which is on disk on return. Rows already in the table are skipped.

        Args:
            table: one of `TABLES`.
            rows: columns of the table without `topic`; if there are no rows, only the offsets are stored.
            arrivals: running maximum of record time per partition, ms; stored in the same commit.

        Returns:
            Number of rows written.

        Raises:
            LakeError: the table cannot be written, or has other column types.
        """
        shape = self._shapes[table]
        if "topic" in shape.columns:
            rows = rows.with_columns(topic=pl.lit(topic))
        rows = rows.select(list(shape.columns))
        for _ in range(_ATTEMPTS):
            delta = self._open_or_create(table)
            self._check_topic(delta, table, topic)
            before = {p: delta.transaction_version(_app(topic, p)) for p in through}
            fresh = {p: last for p, last in through.items() if last > _or(before[p], -1)}
            if not fresh:
                return 0
            new = _beyond(rows, shape.place, {p: _or(before[p], -1) for p in fresh})
            marks = [Transaction(_app(topic, p), last) for p, last in fresh.items()]
            marks += [Transaction(_app_arrival(topic, p), (arrivals or {})[p]) for p in fresh if p in (arrivals or {})]
            marks.append(
                Transaction(
                    _app_count(topic), max(_or(delta.transaction_version(_app_count(topic)), 0), 1 + max(fresh))
                )
            )
            marks += self._first_marks(delta, topic)
            try:
                write_deltalake(
                    delta,
                    new.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._arrow(table)),
                    mode="append",
                    schema_mode="merge",
                    commit_properties=CommitProperties(app_transactions=marks),
                )
            except CommitFailedError:
                continue  # another writer was first; the next attempt skips its records
            except (DeltaError, OSError) as error:
                raise LakeError(
                    f"{self.folder / table}: cannot be written ({type(error).__name__}: {error})"
                ) from error
            self._sync(table, delta.version())
            return new.height
        raise LakeError(
            f"{self.folder / table}: {_ATTEMPTS} commits failed because of other writers; run one ingest at a time"
        )

    def read(self, table: str, *, columns: list[str] | None = None, where: pc.Expression | None = None) -> pl.DataFrame:
        """Rows of a table in the order of its topic; empty if nothing was written yet.

        Args:
            columns: names of the columns; None reads all.
            where: filter of the rows; files are skipped by their statistics. None reads all.

        Raises:
            LakeError: the table cannot be read.
        """
        shape = self._shapes[table]
        wanted = list(dict.fromkeys([*(columns or shape.columns), *shape.place]))
        delta = self._open(table)
        if delta is None:
            return pl.DataFrame(schema=shape.columns).select(columns or wanted)
        try:
            there = {field.name for field in delta.schema().fields}
            data = (
                delta.to_pyarrow_dataset()
                .scanner(columns=[c for c in wanted if c in there], filter=where, **_READ_AHEAD)
                .to_table()
            )
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise LakeError(f"{self.folder / table}: cannot be read ({type(error).__name__}: {error})") from error
        frame = pl.DataFrame(data).with_columns(
            pl.lit(None, shape.columns[c]).alias(c) for c in wanted if c not in there
        )
        return frame.cast({c: shape.columns[c] for c in wanted}).sort(shape.place).select(columns or wanted)  # type: ignore[arg-type]

    def batches(self, table: str, columns: list[str]) -> Iterator[pl.DataFrame]:
        """Columns of all rows in bounded batches, in no particular order.

        Raises:
            LakeError: the table cannot be read.
        """
        delta = self._open(table)
        if delta is None:
            return
        try:
            there = {field.name for field in delta.schema().fields}
            scanner = delta.to_pyarrow_dataset().scanner(columns=[c for c in columns if c in there], **_READ_AHEAD)
            for batch in scanner.to_batches():
                frame = pl.DataFrame(batch)
                yield frame.with_columns(
                    pl.lit(None, self._shapes[table].columns[c]).alias(c) for c in columns if c not in there
                ).select(columns)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise LakeError(f"{self.folder / table}: cannot be read ({type(error).__name__}: {error})") from error

    def snapshot(self) -> "Lake":
        """A view of the lake for reading, without rows that are appended later.

        Raises:
            LakeError: a table cannot be read.
        """
        pinned = copy.copy(self)
        pinned._pinned = {table: self._open(table) for table in TABLES}
        return pinned

    def __getstate__(self) -> dict[str, Any]:
        """A snapshot goes to other processes as the versions of its tables; they must reach its folder."""
        state = self.__dict__ | {"folder": self.folder.resolve()}
        if self._pinned is not None:
            state["_pinned"] = {t: None if delta is None else delta.version() for t, delta in self._pinned.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        versions: Mapping[str, int | None] | None = state.pop("_pinned")
        self.__dict__.update(state, _pinned=None)
        if versions is None:
            return
        try:
            tables = {t: None if v is None else DeltaTable(self.folder / t, version=v) for t, v in versions.items()}
        except (DeltaError, OSError) as error:
            raise LakeError(
                f"{self.folder} cannot be read ({type(error).__name__}: {error}); all machines that work on it must "
                "reach it under this path"
            ) from error
        self._pinned = tables

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to ingest, per topic and partition."""
        return {(topic, p): last + 1 for topic, p, last in self._noted(_app)}

    def arrivals(self) -> dict[tuple[str, int], int]:
        """Running maximum of record time, ms, per topic and partition, over all ingested records."""
        return {(topic, p): stamp for topic, p, stamp in self._noted(_app_arrival)}

    def end_ms(self) -> int:
        """The time when all that is in the lake has taken effect, on the clock of its records."""
        lag_ms = self.stream.labels.lag_ms if self.stream.labels else 0
        return max(self.arrivals().values(), default=0) + lag_ms + 1

    def version(self) -> str:
        """Version of every table, for lineage.

        Example:
            "events=12 labels=3 refused=1 scores=9 places=9"; a table that does not exist yet has version "-".
        """
        tables = ((name, self._open(name)) for name in TABLES)
        return " ".join(f"{name}={'-' if delta is None else delta.version()}" for name, delta in tables)

    def identity(self, tables: Sequence[str]) -> list[list[Any] | None]:
        """What the rows of each table are: its random id, its topic's id, the offsets covered; None without a table.

        Compaction changes none of these.
        """
        return [self._identity(table, self.stream.topic(dict(_FILLED_FROM)[table])) for table in tables]

    def _identity(self, table: str, topic: str) -> list[Any] | None:
        delta = self._open(table)
        if delta is None:
            return None
        n_partitions = _or(delta.transaction_version(_app_count(topic)), 0)
        covered = [delta.transaction_version(_app(topic, p)) for p in range(n_partitions)]
        return [str(delta.metadata().id), delta.transaction_version(_app_topic_id(topic)), covered]

    def tidy(self, table: str, *, keep: timedelta) -> Tidied | None:
        """Merge small files of a table into large ones, and delete what older versions of it needed.

        Rows and positions stay as they are. A reader of a version older than `keep` fails. It may run beside an ingest,
        and be killed at any time: what it has not come to, the next one does.

        Returns:
            None if there is no such table.

        Raises:
            LakeError: the table cannot be written.
        """
        delta = self._open(table)
        if delta is None:
            return None
        hours = round(keep.total_seconds() / 3600)
        before = len(delta.file_uris())
        try:
            if before > 1:
                delta.optimize.compact()
                self._sync(table, delta.version())  # before the files that it replaces are deleted
            deleted = delta.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=True)
            delta.create_checkpoint()
            delta.cleanup_metadata()
        except (DeltaError, OSError) as error:
            raise LakeError(f"{self.folder / table}: cannot be tidied ({type(error).__name__}: {error})") from error
        return Tidied(before, len(delta.file_uris()), len(deleted))

    def _noted(self, app: Callable[[str, int], str]) -> list[tuple[str, int, int]]:
        noted = []
        for table, kind in _FILLED_FROM:
            delta, topic = self._open(table), self.stream.topic(kind)
            if delta is None:
                continue
            for p in range(_or(delta.transaction_version(_app_count(topic)), 0)):
                value = delta.transaction_version(app(topic, p))
                if value is not None:
                    noted.append((topic, p, value))
        return noted

    def _check_topic(self, delta: DeltaTable, table: str, topic: str) -> None:
        noted, ours = delta.transaction_version(_app_topic_id(topic)), self._topic_ids.get(topic)
        if noted is not None and ours is not None and noted != ours:
            raise LakeError(
                f"{self.folder / table} was filled from another topic named {topic}, which has since been deleted and "
                "recreated; run `unmask recover`"
            )

    def _first_marks(self, delta: DeltaTable, topic: str) -> list[Transaction]:
        """Format of the table and id of its topic, if they are not stored yet."""
        wanted = {_APP_FORMAT: FORMAT}
        if topic in self._topic_ids:
            wanted[_app_topic_id(topic)] = self._topic_ids[topic]
        return [Transaction(app, n) for app, n in wanted.items() if delta.transaction_version(app) is None]

    def _open(self, table: str) -> DeltaTable | None:
        if self._pinned is not None:
            return self._pinned[table]
        try:
            delta = DeltaTable(self.folder / table)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise LakeError(
                f"{self.folder / table} is not a table of Unmask ({type(error).__name__}: {error}); move it away"
            ) from error
        if (written := _or(delta.transaction_version(_APP_FORMAT), 1)) > FORMAT:
            raise LakeError(
                f"{self.folder / table} has format {written}, but this version of Unmask reads formats up to {FORMAT}: "
                "it was written by a newer version of Unmask; run that version"
            )
        ours = {field.name: field.type for field in Schema.from_arrow(self._arrow(table)).fields}
        for field in delta.schema().fields:  # delta-rs would cast silently if possible
            if field.name in ours and field.type != ours[field.name]:
                raise LakeError(
                    f"{self.folder / table}: {field.name} was written as {field.type}, now it is {ours[field.name]}; "
                    "give the stream new topics (`topics = ...` in the stream file), which start a new lake"
                )
        return delta

    def _open_or_create(self, table: str) -> DeltaTable:
        delta = self._open(table)
        if delta is not None:
            return delta
        try:
            (self.folder / table).mkdir(parents=True, exist_ok=True)
            return DeltaTable.create(self.folder / table, schema=self._arrow(table), mode="ignore")
        except (DeltaError, OSError) as error:
            if isinstance(error, CommitFailedError) and (delta := self._open(table)) is not None:
                return delta  # another writer created it between our look and our commit
            raise LakeError(f"{self.folder / table}: cannot be created ({type(error).__name__}: {error})") from error

    def _arrow(self, table: str) -> pa.Schema:
        return pa.schema([(name, _ARROW[kind]) for name, kind in self._shapes[table].columns.items()])

    def _sync(self, table: str, version: int) -> None:
        """Flush new files to disk, which delta-rs does not: a power cut could otherwise lose a committed append."""
        folder = self.folder / table
        commit = folder / "_delta_log" / f"{version:020}.json"
        actions = [json.loads(line) for line in commit.read_text().splitlines()]
        files = [folder / action["add"]["path"] for action in actions if "add" in action]
        for path in (*files, folder, commit, commit.parent):
            sync(path)


def _shapes(stream: Stream) -> dict[str, _Shape]:
    text, whole, real, place, flag = pl.String, pl.Int64, pl.Float64, pl.Int32, pl.Boolean
    at: _Types = {"topic": text, "partition": place, "offset": whole, "arrival_ms": whole}
    event: _Types = {**at, "event_id": text, "event_time_ms": whole}
    label: _Types = {**event, "label": pl.Int8, "labelled_at_ms": whole, "source": text}
    label |= {"labelled_by": text, "label_why": text}
    for name in (*stream.entities, *stream.numbers, *stream.categories):
        if name in label:
            raise LakeError(
                f"the field {name} of stream {stream.name} has the same name as a column of the lake; rename the field"
            )
    entities: _Types = dict.fromkeys(stream.entities, text)
    cells: _Types = {**entities, **dict.fromkeys(stream.numbers, real), **dict.fromkeys(stream.categories, text)}
    raw: _Types = {"rule": text, "detail": text, "raw": pl.Binary, "raw_bytes": whole, "sha256": text}
    score: _Types = {"topic": text, "partition": place, "offset": whole, "scores_offset": whole, "event_id": text}
    score |= {
        "score": real,
        "alert": flag,
        "model": text,
        "features_hash": text,
        "late_ms": whole,
        "out_of_order": flag,
        "threshold": real,  # an ordered one; null = that of the model
    }
    told: _Types = {"told_partition": place, "told_offset": whole, "kind": pl.Int8, "partition": place, "offset": whole}
    told |= {"at_effective_ms": whole, "at_kind": pl.Int8, "at_partition": place, "at_offset": whole, "at_seq": whole}
    here = ("partition", "offset")
    return {
        "events": _Shape({**event, **cells}, here),
        "labels": _Shape({**label, **entities}, here),
        "refused": _Shape({**at, **raw}, here),
        "scores": _Shape(score, ("partition", "scores_offset")),
        "places": _Shape(told, ("told_partition", "told_offset")),
    }


def _beyond(rows: pl.DataFrame, place: tuple[str, str], covered: Mapping[int, int]) -> pl.DataFrame:
    """Rows of the partitions in `covered` that are beyond the covered offset."""
    partition, offset = place
    last = pl.col(partition).replace_strict(covered, default=None, return_dtype=pl.Int64)
    return rows.filter(pl.col(offset) > last)


def _app(topic: str, partition: int) -> str:
    return f"{topic}-{partition}"


def _app_arrival(topic: str, partition: int) -> str:
    return f"{topic}-{partition}/arrival_ms"


def _app_topic_id(topic: str) -> str:
    return f"{topic}/topic_id"


def _low_bits(topic_id: str) -> int:
    """The bits of a UUID that fit into a transaction version."""
    return uuid.UUID(topic_id).int & (2**63 - 1)


def _app_count(topic: str) -> str:
    return f"{topic}/partitions"


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
