"""Flow: merge small files of the lake, and delete what nothing needs any more."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from flows.alone import alone
from flows.retries import retry_unless_mistaken
from flows.settings import Settings
from flows.stages import artifact_key, run_log, run_name, stage
from flows.streams.shipped import load
from pipelines.contracts.stream import Stream
from pipelines.lake.tables import TABLES, Tidied

KEPT_COPIES = 20  # newest copies of models and encoders on this machine; MLflow has all


@flow(name="maintain-lake", flow_run_name=run_name, retries=1, retry_delay_seconds=60)
@retry_unless_mistaken
@alone
def maintain_lake(stream: Path, keep_days: Annotated[int, Field(ge=1)] = 7) -> dict[str, Tidied]:
    """Merge the small files that each ingest adds to the lake, and delete files of older versions of its tables.

    Rows and positions stay. Copies of models and encoders on this machine are deleted but for the newest.

    Args:
        stream: path of the stream file, or the name of a shipped stream.
        keep_days: for so long, older versions of the tables can be read, as training runs that are going on do.

    Returns:
        What was done to each table.
    """
    settings, spec = Settings(), load(stream)
    done = _tidy_tables(settings, spec, keep_days)
    deleted = _delete_copies(settings)
    rows: list[dict[str, object]] = [
        {"table": table, "files before": one.before, "files now": one.after, "deleted": one.deleted}
        for table, one in done.items()
    ]
    words = f"{deleted} copies of models and encoders were deleted on this machine."
    create_table_artifact(key=artifact_key(spec.name, "maintain-lake"), table=rows, description=words)
    return done


@stage("merge and delete files of the tables")
def _tidy_tables(settings: Settings, stream: Stream, keep_days: int) -> dict[str, Tidied]:
    lake, done = settings.lake(stream), {}
    for table in TABLES:
        tidied = lake.tidy(table, keep=timedelta(days=keep_days))
        if tidied is not None:
            done[table] = tidied
            run_log().info(f"{table}: {tidied.before} files, now {tidied.after}; {tidied.deleted} old ones deleted")
    return done


@stage("delete old copies of models")
def _delete_copies(settings: Settings) -> int:
    """Delete the least recently changed copies but those that an alias was last seen to point to; returns how many."""
    in_use = {text for path in settings.model_cache.glob("*.json") for text in path.read_text().split('"')}
    n_deleted = 0
    for folder in (settings.model_cache, settings.encoder_cache):
        for left in folder.glob(".*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        copies = sorted((path for path in folder.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
        for path in copies[:-KEPT_COPIES]:
            if path.name not in in_use:
                gone = path.rename(path.with_name(f".{path.name}"))  # a folder by its digest is complete or absent
                shutil.rmtree(gone, ignore_errors=True)
                n_deleted += 1
    run_log().info("%d copies deleted", n_deleted)
    return n_deleted
