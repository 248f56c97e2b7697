"""Flow: copy new records from Kafka to the lake, each exactly once."""

import time
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import progress
from flows.alone import alone
from flows.lineage import lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings
from flows.streams.shipped import load
from models.ship import registry
from pipelines.lake.ingest import IngestCounts
from pipelines.lake.ingest import ingest as ingest_stream


@flow(name="ingest", retries=2, retry_delay_seconds=10, validate_parameters=False)
@retry_unless_mistaken
@alone
def ingest(stream: Path) -> IngestCounts:
    """Copy events, labels, scores and progress records, from the offsets of the lake to the current end of Kafka.

    Args:
        stream: path of the stream file.
    """
    settings, spec = Settings(), load(Path(stream))
    lake = settings.lake(spec)
    started = time.monotonic()
    with progress.shown("ingest") as report:
        counts = ingest_stream(
            settings.connection(),
            spec,
            lake,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} records"),
        )
    seconds = time.monotonic() - started
    figures = {name: float(value) for name, value in vars(counts).items()} | {"seconds": seconds}
    page = registry.note(
        f"{spec.name}/ingest",
        figures,
        tracking_uri=settings.tracking_uri_or_nowhere(),
        run_name="ingest",
        tags=lineage(spec, lake),
    )
    create_table_artifact(key="ingest", table=[figures], description=f"[MLflow run]({page})" if page else "")
    return counts
