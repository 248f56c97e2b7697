"""Metrics of a scorer for Prometheus, made when they are asked for: counting costs nothing here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from flows.serve.monitor import Monitor, Sample
from pipelines.live.metrics import Histogram, Published
from pipelines.live.serving import Serving


@dataclass(frozen=True, eq=False)
class ScorerMetrics(Collector):
    """Everything counted about a scorer, from where it is counted."""

    stream: str
    replica: str
    monitor: Monitor
    published: Published
    serving: Serving
    n_models_failed: Callable[[], int]

    def describe(self) -> list[Metric]:
        """Nothing: all names begin with `unmask_`."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._published()
        yield from self._models()
        yield from self._liveness()
        if (sample := self.monitor.sample) is not None:
            yield from _of_sample(sample)

    def _published(self) -> Iterator[Metric]:
        done = self.published
        yield _counter("events_scored", "Events scored and published.", done.n_scored)
        yield _counter("events_duplicate", "Events that repeat the id of another one.", done.n_duplicates)
        yield _counter("alerts", "Scores over the threshold.", done.n_alerts)
        yield _counter("alerts_suppressed", "Scores over the threshold of suppressed entities.", done.n_suppressed)
        yield _counter("reviews", "Events drawn for review.", done.n_reviews)
        yield _counter("events_late", "Events older than the newest one of their partition.", done.n_late)
        yield _counter("events_out_of_order", "Events after their place in the order.", done.n_out_of_order)
        yield _counter("lanes_rebuilt", "Producers opened after a failed transaction.", done.n_rebuilt)
        refused = CounterMetricFamily("unmask_events_refused", "Events that broke a rule.", labels=["rule"])
        for rule, n in sorted(done.refused.copy().items()):
            refused.add_metric([rule], n)
        yield refused
        yield _histogram(
            "event_to_commit_seconds", "Arrival of an event to the commit of its score.", done.latency_ms, scale=1e-3
        )
        yield _histogram("transaction_events", "Events in a transaction.", done.block_rows)

    def _models(self) -> Iterator[Metric]:
        info = {"stream": self.stream, "replica": self.replica, "version": version("unmask")}
        yield InfoMetricFamily("unmask_scorer", "This process.", value=info)
        yield InfoMetricFamily("unmask_model", "The model in use.", value={"digest": self.serving.champion.digest})
        yield _counter("model_swaps", "Changes of the model in use.", self.serving.n_swaps)
        n_refused = len(self.serving.refused) + self.n_models_failed()
        yield _counter("models_refused", "Models that could not be used, or were returned.", n_refused)
        yield _gauge("threshold", "A score above it raises an alert.", self.serving.champion.threshold)
        if (shadow := self.serving.shadow) is not None:
            outcomes = {"scored": shadow.n_scored, "dropped": shadow.n_dropped, "failed": shadow.n_failed}
            events = CounterMetricFamily("unmask_shadow_events", "Events for the challenger.", labels=["outcome"])
            for outcome, n in outcomes.items():
                events.add_metric([outcome], n)
            yield events

    def _liveness(self) -> Iterator[Metric]:
        monitor = self.monitor
        yield _gauge("alive", "1 if the loop and the lanes make progress.", not monitor.not_alive)
        yield _gauge("ready", "1 if it has caught up and owns its partitions.", not monitor.not_ready)
        yield _counter("restores", "States restored since the start of the process.", monitor.n_restores)


def _of_sample(sample: Sample) -> Iterator[Metric]:
    counters = sample.counters
    yield _gauge("lag_records", "Records not published yet.", by={p: lag.records for p, lag in sample.lags.items()})
    ages_s = {p: lag.ms / 1000 for p, lag in sample.lags.items()}
    yield _gauge("lag_seconds", "Age of the oldest event in hand that is not published yet.", by=ages_s)
    yield _gauge("partitions_owned", "Partitions that this replica publishes.", len(sample.lags))
    yield _gauge("memory_bytes", "Memory by part.", label="part", by=sample.n_bytes)
    yield _gauge("state_entities", "Entities in the state.", label="entity", by=sample.entities)
    if sample.snapshot_age_s is not None:
        yield _gauge("snapshot_age_seconds", "Time since the newest snapshot.", sample.snapshot_age_s)
    yield _counter("partitions_claimed", "Partitions claimed.", sample.n_claims)
    yield _counter("records_read", "Events and labels read.", counters.n_read)
    yield _counter("records_folded", "Events and labels folded into the state.", counters.n_folded)
    yield _counter("labels_broken", "Labels that broke a rule.", counters.n_broken_labels)
    yield _counter("unknown_fields", "Events with fields not in the stream file.", counters.n_unknown_fields)
    yield _counter("snapshots", "Snapshots written.", counters.n_snapshots)
    yield _counter("snapshots_failed", "Snapshots that could not be written.", counters.n_snapshots_failed)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"unmask_{name}", text, value=value)


def _gauge(
    name: str, text: str, value: float | None = None, *, label: str = "partition", by: Mapping[Any, float] | None = None
) -> Metric:
    """A gauge with a value, or with one by label."""
    if by is None:
        return GaugeMetricFamily(f"unmask_{name}", text, value=value)
    family = GaugeMetricFamily(f"unmask_{name}", text, labels=[label])
    for at, one in sorted(by.items()):
        family.add_metric([str(at)], one)
    return family


def _histogram(name: str, text: str, values: Histogram, *, scale: float = 1.0) -> Metric:
    bounds = [*(f"{bound * scale:g}" for bound in values.bounds), "+Inf"]
    buckets = list(zip(bounds, values.cumulative(), strict=True))
    return HistogramMetricFamily(f"unmask_{name}", text, buckets=buckets, sum_value=values.total * scale)
