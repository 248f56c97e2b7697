import logging

import pytest

from flows.serve.follow import readable_scores
from pipelines.contracts.messages import RecordSource, Score, encode
from pipelines.record import Received


def test_what_is_no_message_of_ours_is_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    score = Score(
        event_id="e", score=0.5, alert=False, model="m", source=RecordSource("t", 0, 3), event_time="", arrival="",
        late_ms=0, out_of_order=False, features_hash="",
    )  # fmt: skip
    values = [b"", b"{", None, b"\xff", b"{}", encode(score), b"[" * 99_999]
    records = [Received("s.scores", 1, i, 0, None, value) for i, value in enumerate(values)]
    with caplog.at_level(logging.WARNING):
        assert list(readable_scores(records)) == [score]
    assert len(caplog.messages) == len(values) - 1
    assert "s.scores [1], offset 1, is not a score of Unmask" in caplog.messages[1]
