"""What the Prefect page shows of a flow: a name for each run, a task for each stage, counts in its log."""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run

from flows import training_data
from flows.settings import Settings
from flows.streams.shipped import load
from flows.training_data import TrainingData
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError
from pipelines.lake.tables import Lake


def stage(name: str) -> Callable[..., Any]:
    """Decorator: a function as a task of this name. Its result stays in memory; a flow that is run again repeats it."""
    return partial(task, name=name, task_run_name=name, persist_result=False)()


@stage("read events and labels from the lake")
def read(settings: Settings, lake: Lake, stream: Stream, *, as_of: datetime | None) -> TrainingData:
    """The training table of what had arrived by a time; None is now, or the end of the lake if that is earlier.

    After the end of the lake, missing labels would look like legitimate events.
    """
    as_of_ms = min(ms_of(None), lake.end_ms()) if as_of is None else ms_of(as_of)
    data = training_data.load(lake, stream, settings.features(stream), as_of_ms=as_of_ms, workers=settings.workers())
    n, n_known, n_frauds = len(data.table), int(data.known.sum()), int((data.label[data.known] == 1).sum())
    run_log().info(f"{n:,} events until {rfc3339(as_of_ms)}; {n_known:,} labels are known, {n_frauds:,} of them frauds")
    return data


def run_log() -> logging.Logger | logging.LoggerAdapter:
    """The log of the flow run on the Prefect page; outside a run, that of this module."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)


def run_name() -> str:
    """Name of the present flow run: its stream and the end of its data, or when it was due."""
    given = flow_run.get_parameters()
    end = given.get("as_of")
    moment = f"until {minute(end)}" if isinstance(end, datetime) else minute(flow_run.get_scheduled_start_time())
    return f"{stream_named(given.get('stream', 'no stream'))} {moment}"


def stream_named(given: object) -> str:
    """Name of the stream that a run is given; that of its file, if it cannot be read.

    >>> stream_named("payments"), stream_named("gone/logins.toml")
    ('payments', 'logins')
    """
    with suppress(UnmaskError, OSError):
        return load(Path(str(given))).name
    return Path(str(given)).stem


def artifact_key(stream: str, what: str) -> str:
    """Key of an artifact on the Prefect page: lower-case letters, digits and dashes.

    >>> artifact_key("Card_payments", "ingest")
    'card-payments-ingest'
    """
    return re.sub(r"[^a-z0-9]+", "-", f"{stream}-{what}".lower()).strip("-")


def minute(moment: datetime) -> str:
    """A time for people, UTC.

    >>> minute(datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC))
    '2026-03-01 12:30'
    """
    return f"{in_utc(moment):%Y-%m-%d %H:%M}"


def in_utc(moment: datetime) -> datetime:
    """The time in UTC; without a time zone it is in UTC already."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def ms_of(moment: datetime | None) -> int:
    """Milliseconds since 1970; of now for None.

    >>> ms_of(datetime(1970, 1, 1, 0, 0, 1))
    1000
    """
    return int((in_utc(moment) if moment else datetime.now(UTC)).timestamp() * 1000)
