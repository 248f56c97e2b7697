"""Flow: copy new records from Kafka to the lake, each exactly once."""

import time
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows import progress
from flows.alone import alone
from flows.lineage import flow_run_tag, lineage
from flows.retries import retry_unless_mistaken
from flows.settings import Settings
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from models.ship import registry
from pipelines.contracts.stream import Stream
from pipelines.lake.ingest import IngestCounts
from pipelines.lake.ingest import ingest as ingest_stream


@flow(name="ingest", flow_run_name=run_name, retries=2, retry_delay_seconds=10)
@retry_unless_mistaken
@alone
def ingest(stream: Path) -> IngestCounts:
    """Copy events, labels, scores and progress records, from the offsets of the lake to the current end of Kafka.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
    """
    settings, spec = Settings(), load(stream)
    started = time.monotonic()
    counts = _copy(settings, spec)
    _note(settings, spec, counts, time.monotonic() - started)
    return counts


@stage("copy Kafka to the lake")
def _copy(settings: Settings, stream: Stream) -> IngestCounts:
    with progress.shown("ingest") as report:
        counts = ingest_stream(
            settings.connection(),
            stream,
            settings.lake(stream),
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} records"),
        )
    run_log().info("added to the lake: %s", ", ".join(f"{n:,} {what}" for what, n in counts.by_table.items()))
    return counts


@stage("note the counts")
def _note(settings: Settings, stream: Stream, counts: IngestCounts, seconds: float) -> None:
    page = registry.note(
        f"{stream.name}/ingest",
        {name: float(n) for name, n in vars(counts).items()} | {"seconds": seconds},
        tracking_uri=settings.tracking_uri_or_nowhere(),
        run_name="ingest",
        tags=lineage(stream, settings.lake(stream)) | flow_run_tag(),
    )
    rows = [{"table": table, "rows added": n} for table, n in counts.by_table.items()]
    words = f"Copied in {seconds:.1f} s." + (f" [MLflow run]({page})" if page else "")
    create_table_artifact(key=artifact_key(stream.name, "ingest"), table=rows, description=words)
