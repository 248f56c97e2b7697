"""The events that a demo plays, the stream file that describes them, and which of them are played live."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from flows.streams import shipped
from pipelines.contracts import stream_file
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.errors import StreamFileError, UnmaskError
from pipelines.play import simulate
from pipelines.play.table_file import read_table

# The simulated stream: about 120,000 payments, of which the last days are played live.
SIMULATED = {"n_customers": 1_500, "n_terminals": 2_200, "days": 40}
SIMULATED_START = datetime(2026, 1, 1, tzinfo=UTC)
SIMULATED_LIVE_EVENTS = 31_000
LIVE_DAYS_OF_FOLDER = 7
N_PARTITIONS = 4


@dataclass(frozen=True)
class Source:
    """Past events in time order; those with an event time in [live_from_ms, live_until_ms) are played live."""

    frame: pl.DataFrame
    stream: Stream
    live_from_ms: int
    live_until_ms: int

    @property
    def n_history(self) -> int:
        """Events before the live part."""
        return int((self.frame[self.stream.event_time].dt.epoch("ms") < self.live_from_ms).sum())

    @property
    def n_live(self) -> int:
        """Events of the live part."""
        times = self.frame[self.stream.event_time].dt.epoch("ms")
        return int(((times >= self.live_from_ms) & (times < self.live_until_ms)).sum())

    @property
    def label_delay_ms(self) -> int:
        """How long after its event a label arrives."""
        return self.stream.labels.maturity_ms if self.stream.labels else 0

    @property
    def has_truth(self) -> bool:
        """Whether the events say which of them are fraud."""
        return self.stream.labels is not None and self.stream.labels.column in self.frame.columns


def read(*, data: Path | None, given: Path | None, target: Path, seed: int) -> Source:
    """The events of a folder, or simulated ones, under a stream file of the demo's own.

    The stream gets a name and topics of its own: the demo replaces no champion of daily work.

    Args:
        data: folder of past events; None simulates payments.
        given: stream file of the folder; None takes the shipped one that fits.
        target: where the demo's stream file goes.
        seed: of the simulation.

    Raises:
        UnmaskError: the folder or the stream file cannot be used.
    """
    file = shipped.SHIPPED["payments"] if data is None else given or _fitting_stream(data)
    if data is None:
        frame = simulate.payments(seed=seed, start=SIMULATED_START, **SIMULATED)
    else:
        frame = simulate.read_folder(stream_file.load(file), data)
    _write_renamed(file, target)
    stream = stream_file.load(target)
    return Source(frame, stream, *_live_span(frame, stream, simulated=data is None))


def _live_span(frame: pl.DataFrame, stream: Stream, *, simulated: bool) -> tuple[int, int]:
    times = frame[stream.event_time].dt.epoch("ms")
    if simulated:
        return int(times[-SIMULATED_LIVE_EVENTS]), int(times[-1]) + 1
    if stream.replay is not None:
        return stream.replay.live_from_ms, stream.replay.live_until_ms
    last_day = int(times[-1]) // DAY_MS
    return (last_day + 1 - LIVE_DAYS_OF_FOLDER) * DAY_MS, (last_day + 1) * DAY_MS


def _write_renamed(file: Path, target: Path) -> None:
    spec = stream_file.load(file)
    name, topics = f"{spec.name}-demo", f"{spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    text = file.read_text(encoding="utf-8")
    table = re.search(r"(?ms)^[ \t]*\[stream\][^\n]*\n(.*?)(?=^[ \t]*\[|\Z)", text)
    assert table is not None  # the file has just been loaded
    others = re.sub(r"(?m)^[ \t]*(name|topics)[ \t]*=.*\n?", "", table[1])
    named = f'name = "{name}"\ntopics = "{topics}"\n'
    target.write_text(text[: table.start(1)] + named + others + text[table.end(1) :], encoding="utf-8")


def _fitting_stream(folder: Path) -> Path:
    """The shipped stream file whose fields are all columns of the folder's files."""
    files = simulate.past_files(folder)
    if not files:
        raise UnmaskError(f"{folder} has no .parquet or .csv file; give a folder of them with --data")
    columns = set(read_table(files[0]).frame.columns)
    for path in shipped.SHIPPED.values():
        if {f.name for f in stream_file.load(path).fields} <= columns:
            return path
    raise StreamFileError(
        f"no shipped stream file fits {folder} (its columns: {', '.join(sorted(columns))}); "
        "make one with `unmask init` and name it with --stream"
    )
