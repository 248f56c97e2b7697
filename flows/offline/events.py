"""Convert the rows of a file to the messages that a producer would send."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from flows.offline import made
from pipelines.contracts.contract import text_of
from pipelines.contracts.stream import Field, Stream
from pipelines.errors import StreamFileError
from pipelines.play import cells
from pipelines.play.table_file import TableFile

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class FileEvents:
    """The rows of a file as events of a stream, in time order.

    A value that does not have the type of its field is kept unchanged, so that the contract refuses it.

    Args:
        stream: stream of the events.
        cells: JSON values of each field, one per row. Only fields that the file has or that are generated.
        row: number of each row in the file, the first below the header is 1, **shape (n,)**.
        time_ms: event times; a row without one has the time of the row before it, **shape (n,)**.
        label: 1 = fraud, 0 = not, -1 = not known, **shape (n,)**.
        made: fields that the file does not have and that are generated from the rows.
        lacking: fields that the file does not have.
        unused: columns of the file that the stream does not have.
        n_time_falls: rows with an earlier time than the row above.
    """

    stream: Stream
    cells: dict[str, list[Any]]
    row: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    label: NDArray[np.int8]
    made: tuple[str, ...]
    lacking: tuple[str, ...]
    unused: tuple[str, ...]
    n_time_falls: int

    def __len__(self) -> int:
        return len(self.row)

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of the Kafka message of each event."""
        names = list(self.cells)
        for values in zip(*self.cells.values(), strict=True):
            yield (
                self._key(dict(zip(names, values, strict=True))),
                _encode({name: value for name, value in zip(names, values, strict=True) if value is not None}),
            )

    def report(self, index: int, at_ms: int) -> tuple[bytes, bytes]:
        """Key and value of the Kafka message that reports the label of a row."""
        stream = self.stream
        names = (stream.event_id, stream.event_time, *stream.entities)
        values = {name: self.cells[name][index] for name in names if name in self.cells}
        return self._key(values), _encode(
            {**values, "label": int(self.label[index]), "labelled_at": at_ms, "source": "file"}
        )

    def _key(self, values: dict[str, Any]) -> bytes:
        value = values.get(self.stream.key)
        return b"" if value is None else text_of(value).encode()


def events_of(stream: Stream, table: TableFile) -> FileEvents:
    """Convert the rows of a table to events of a stream.

    Raises:
        StreamFileError: the file has no column for the event id, the event time, the key or the label.
    """
    frame, n = table.frame, table.frame.height
    columns = {name: frame[name] for name in frame.columns}
    absent = [f for f in stream.fields if f.name not in columns]
    for field in absent:
        if field.name in made.MADE:
            columns[field.name] = made.MADE[field.name](n)
        elif field.name in (stream.event_id, stream.event_time, stream.key):
            raise StreamFileError(
                f"{table.path}: has no column for the field {field.name}, which every event needs; the columns are "
                f"{_listed(frame.columns)}. Rename the field in the stream file, or the column in the file"
            )
    times = cells.times(columns[stream.event_time]).ms
    filled = times.fill_null(strategy="forward").fill_null(strategy="backward").fill_null(0)
    known = filled.to_numpy()
    order = pl.Series(np.argsort(known, kind="stable"))
    values = {f.name: _values(f, columns[f.name].gather(order)) for f in stream.fields if f.name in columns}
    truth = stream.labels.column if stream.labels else None
    return FileEvents(
        stream,
        values,
        order.to_numpy() + 1,
        known[order.to_numpy()],
        _label(table, truth).gather(order).to_numpy(),
        made=tuple(f.name for f in absent if f.name in made.MADE),
        lacking=tuple(f.name for f in absent if f.name not in made.MADE),
        unused=tuple(name for name in frame.columns if name not in values and name != truth),
        n_time_falls=int((np.diff(known) < 0).sum()),
    )


def _label(table: TableFile, column: str | None) -> pl.Series:
    if column is None:
        return pl.repeat(-1, table.frame.height, dtype=pl.Int8, eager=True)
    if column not in table.frame.columns:
        raise StreamFileError(
            f"{table.path}: has no column {column}, the label column in the stream file; the columns are "
            f"{_listed(table.frame.columns)}. Correct the column in [labels], or remove [labels]"
        )
    return cells.labels(table.frame[column]).fill_null(-1)


def _values(field: Field, column: pl.Series) -> list[Any]:
    """JSON values of a field. A missing cell is None; a cell of another type is its text."""
    read: pl.Series
    match field.type:
        case "number":
            read = cells.numbers(column)
        case "int":
            read = cells.wholes(column)
        case "time":
            read = cells.times(column).ms
        case _:
            return cells.texts(column).to_list()
    wrong = (read.is_null() & ~cells.is_missing(column, of_values=True)).arg_true()
    values = read.to_list()
    if len(wrong):
        as_they_are = cells.texts(column)
        for i in wrong:
            values[i] = as_they_are[i]
    return values


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
