"""Waiting for scores ends with the scorer, not with a clock, and says how far it came."""

import json
from pathlib import Path

import pytest

from flows.demo import live
from flows.demo.follower import Follower
from flows.local import processes
from flows.settings import Settings
from pipelines.errors import UnmaskError
from pipelines.kafka.connection import Connection
from pipelines.play.producer import create_stream_topics
from tests.pipelines.payments import payments_stream


def test_a_scorer_that_ended_is_reported_with_every_outcome_and_the_end_of_its_log(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    stream = payments_stream(f"demo-{tmp_path.name}")
    create_stream_topics(Connection(kafka), stream, n_partitions=1, append_time=False)
    status = Settings().scorer_status(stream)
    status.parent.mkdir(parents=True)
    status.write_text(json.dumps({"scored": 5, "refused": 2, "duplicates": 1}))
    process = processes.launch("scorer", ["sh", "-c", "echo out of memory"], folder=tmp_path, address="")
    follower = Follower(Connection(kafka), stream)
    follower.start()
    try:
        with pytest.raises(UnmaskError) as raised:
            live._await_scores(process, stream, follower, 10, lambda share, words: None)
    finally:
        follower.stop()
        process.stop()
    assert "the scorer ended: 5 scored + 2 refused + 1 duplicates of 10 events sent" in str(raised.value)
    assert "out of memory" in str(raised.value)
