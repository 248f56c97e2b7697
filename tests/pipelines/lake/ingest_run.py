"""Ingests a stream in a process of its own, which a fault may kill: BOOTSTRAP TOPICS LAKE_FOLDER FAULT."""

import sys
from pathlib import Path

from pipelines.faults import kill_at
from pipelines.kafka.connection import Connection
from pipelines.lake.ingest import ingest
from pipelines.lake.tables import Lake
from tests.pipelines.payments import payments_stream


def main() -> None:
    bootstrap, topics, folder, fault = sys.argv[1:]
    stream = payments_stream(topics)
    ingest(Connection(bootstrap), stream, Lake(Path(folder), stream), fault=kill_at(fault))


if __name__ == "__main__":
    main()
