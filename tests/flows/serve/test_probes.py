"""Metrics and probes of a running scorer: they say what was published, who is not alive, and who is not ready."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.serve import monitor as monitoring
from flows.serve.metrics import ScorerMetrics
from flows.serve.monitor import Monitor, Sample
from flows.serve.probes import probes
from pipelines.errors import UnmaskError
from pipelines.live.metrics import Published
from pipelines.live.scorer import Scorer
from pipelines.live.serving import Serving
from tests.patience import wait_until
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import N_PARTITIONS, Rig, running
from tests.pipelines.live.test_storm_run import send


def asked(port: int, path: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics_at(port: int) -> dict[str, float]:
    """The value of every sample by its name and labels, such as `unmask_lag_records{partition=0}`."""
    found = {}
    for family in text_string_to_metric_families(asked(port, "/metrics")[1]):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


class Watched:
    """A scorer whose loop leaves samples for probes, as the service does."""

    def __init__(self, rig: Rig, published: Published) -> None:
        self.monitor, self.published = Monitor(), published
        self.metrics = ScorerMetrics(rig.stream.name, "a", self.monitor, published, Serving(Linear(rig.stream)), int)

    def follow(self, scorer: Scorer) -> None:
        step = scorer.step

        def watched() -> None:
            self.monitor.stepped()
            self.monitor.sample = Sample.of(scorer)
            step()

        scorer.step = watched  # type: ignore[method-assign]
        self.monitor.restored()


@contextmanager
def watched_probes(rig: Rig, published: Published) -> Iterator[tuple[Watched, int]]:
    watched = Watched(rig, published)
    with probes(0, watched.monitor, watched.metrics) as port:
        yield watched, port


def test_metrics_are_what_was_published(kafka: str, tmp_path: Path) -> None:
    rig, published = Rig(kafka, tmp_path), Published()
    with watched_probes(rig, published) as (watched, port):
        assert asked(port, "/readyz") == (503, "the state is being restored\n")
        assert asked(port, "/livez") == (200, "ok\n")
        scorer = rig.scorer(published=published)
        watched.follow(scorer)
        with running(scorer):
            rig.send(30)
            rig.send_many([b'{"id": "e0", "at": 1, "card": "c0"}', b"{", b'{"id": "x", "at": 1}'], b"c0")
            send(rig, "c1", 3, amount=1e6 * 99)  # out of range
            send(rig, "c2", 2, amount=9e4)  # alerts
            rig.wait_until_out()
            wait_until(lambda: asked(port, "/readyz")[0] == 200)
            wait_until(lambda: metrics_at(port)["unmask_lag_records{partition=0}"] == 0)
            told = metrics_at(port)
        assert asked(port, "/nothing")[0] == 404
    scores, refused = rig.scores(), rig.refused()
    assert told["unmask_events_scored_total"] == len(scores) == 32
    assert told["unmask_alerts_total"] == sum(score["alert"] for score in scores) > 0
    rules = {name: n for name, n in told.items() if name.startswith("unmask_events_refused_total")}
    expected = {"bad_json": 1, "missing_field": 1, "out_of_range": 3}
    assert rules == {f"unmask_events_refused_total{{rule={rule}}}": n for rule, n in expected.items()}
    assert told["unmask_events_duplicate_total"] == 1 == len(refused) - sum(expected.values())
    assert told["unmask_events_late_total"] == sum(score["late_ms"] > 0 for score in scores)
    assert told["unmask_event_to_commit_seconds_count"] == rig.n_sent == told["unmask_records_read_total"]
    assert told["unmask_event_to_commit_seconds_bucket{le=+Inf}"] == rig.n_sent
    assert 0 < told["unmask_event_to_commit_seconds_sum"] < 60 * rig.n_sent
    assert told["unmask_transaction_events_sum"] == rig.n_sent
    assert told["unmask_partitions_owned"] == told["unmask_partitions_claimed_total"] == N_PARTITIONS
    assert told["unmask_memory_bytes{part=outbox}"] == 0 < told["unmask_memory_bytes{part=state}"]
    assert told["unmask_state_entities{entity=card}"] == 7
    assert told["unmask_model_info{digest=linear}"] == told["unmask_alive"] == told["unmask_ready"] == 1
    assert told["unmask_restores_total"] == 1
    assert told["process_resident_memory_bytes"] > 1e7


def test_a_lane_or_a_loop_that_stands_still_is_not_alive(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, published = Rig(kafka, tmp_path), Published()
    lane_goes_on, loop_goes_on = threading.Event(), threading.Event()
    loop_goes_on.set()

    def fault(point: str) -> None:
        if point == "before_flush":
            lane_goes_on.wait(120)
        if point == "mid_fold":
            loop_goes_on.wait(120)

    with watched_probes(rig, published) as (watched, port):
        scorer = rig.scorer(published=published, fault=fault, health_after=timedelta(seconds=1))
        watched.follow(scorer)
        try:
            with running(scorer):
                rig.send(5)
                wait_until(lambda: asked(port, "/livez")[0] == 503)
                why = asked(port, "/livez")[1]
                assert why.startswith("publishing partition")
                assert asked(port, "/readyz") == (503, why)
                told = metrics_at(port)
                assert told["unmask_alive"] == told["unmask_ready"] == 0
                assert sum(told[f"unmask_lag_records{{partition={p}}}"] for p in range(N_PARTITIONS)) == 5
                assert max(told[f"unmask_lag_seconds{{partition={p}}}"] for p in range(N_PARTITIONS)) > 0.9
                lane_goes_on.set()
                rig.wait_until_out()
                wait_until(lambda: asked(port, "/readyz")[0] == 200)
                loop_goes_on.clear()
                monkeypatch.setattr(monitoring, "LOOP_SILENT_S", 1.0)
                rig.send(5)
                wait_until(lambda: asked(port, "/livez")[0] == 503)
                assert asked(port, "/livez")[1].startswith("no step of the loop for")
                loop_goes_on.set()
                rig.wait_until_out()
                wait_until(lambda: asked(port, "/livez")[0] == 200)
        finally:
            lane_goes_on.set()
            loop_goes_on.set()


def test_a_port_in_use_is_reported(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    with (
        watched_probes(rig, Published()) as (watched, port),
        pytest.raises(UnmaskError, match=f"port {port} of --metrics-port cannot be used"),
        probes(port, watched.monitor, watched.metrics),
    ):
        pass
