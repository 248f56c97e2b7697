"""Flow: replay a past period from the lake as the live scorer scored it, with several models and budgets."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from flows import progress
from flows.alone import alone
from flows.backtesting import against_baselines, candidates, period, report, trials
from flows.backtesting.budgets import OWN, budget_of
from flows.backtesting.candidates import UNKNOWN_MS, Candidate, NothingToTestError
from flows.backtesting.charts import charts
from flows.backtesting.live_check import Live, live_scores
from flows.backtesting.period import Period
from flows.backtesting.result import Backtest, Outcome, day_or_time
from flows.backtesting.trials import Scored
from flows.lineage import flow_run_tag, lineage
from flows.retries import retry_unless_mistaken
from flows.serve.model import model_of
from flows.settings import Settings
from flows.stages import artifact_key, ms_of, run_log, stage, stream_named
from flows.streams.shipped import load
from models.ship import registry
from pipelines.contracts.messages import rfc3339
from pipelines.contracts.stream import DAY_MS, Stream
from pipelines.lake.feature_table import feature_table
from pipelines.lake.tables import Lake


def _run_name() -> str:
    given = flow_run.get_parameters()
    begin, end = given.get("since"), given.get("until")
    since = day_or_time(ms_of(begin)) if isinstance(begin, datetime) else "the end of the training"
    until = day_or_time(ms_of(end)) if isinstance(end, datetime) else "the end of the lake"
    return f"{stream_named(given.get('stream', 'no stream'))} {since} to {until}"


@flow(name="backtest", flow_run_name=_run_name, retries=1, retry_delay_seconds=10)
@retry_unless_mistaken
@alone
def backtest(
    stream: Path,
    since: datetime | None = None,
    until: datetime | None = None,
    models: Sequence[str] = ("champion",),
    budgets: Sequence[str] = (OWN,),
    capacity: int | None = None,
    value: str | None = None,
    window_days: float = 14.0,
    allow_seen: bool = False,
    with_baselines: bool = False,
    truth: Path | None = None,
    seed: int = 0,
) -> Backtest:
    """Score the events that arrived in a period as the live scorer does, and simulate the reviews of their alerts.

    It reads the lake and writes one MLflow run, at its end; so it may be killed and repeated.

    Args:
        stream: path of the stream file.
        since: start of the period (arrival of its events); empty is the end of the models' training.
        until: end of the period; empty is the end of the lake.
        models: `champion`, `challenger`, `candidate` or digests (12 or more digits).
        budgets: `model` (its own threshold), a share such as `0.005`, `40/day`, or `cost:200:5` (a miss, a review).
        capacity: cases that people review a day, the highest of each day; empty is all.
        value: number field that is the money of an event.
        window_days: days before the period whose events set the thresholds of budgets.
        allow_seen: test models that may have seen the period in their training; the result says so.
        with_baselines: also compare the first model with baselines fitted on what was known at the start.
        truth: Parquet file (event_id, label), for a replay whose labels are known before they arrive.
        seed: seed of the baselines.

    Raises:
        NothingToTestError: there is no such model or period, or a model may have seen it.
    """
    settings, spec = Settings(), load(stream)
    period.check_value(spec, value)
    window_ms = int(window_days * DAY_MS) if any(budget_of(text) for text in budgets) else 0
    lake = settings.lake(spec).snapshot()
    found = _find_models(settings, spec, models)
    when = _read_period(settings, spec, lake, found, since, until, value, truth)
    live = _read_live_scores(lake, when, found)
    seen = {one.digest: trials.n_seen(one, when, live[one.digest]) for one in found}
    if not allow_seen:
        trials.refuse_seen(found, when, seen)
    scored = _score(settings, spec, found, when, window_ms)
    checks = trials.live_checks(scored, when, live)
    for name, check in checks.items():
        run_log().info("%s: %s", name, check.words)
    outcomes = _review(spec, lake, when, scored, budgets, window_ms, capacity, seen)
    comparison: dict[str, float] = {}
    if with_baselines:
        comparison = _compare_with_baselines(settings, spec, lake, scored[0], when, truth, seed)
    result = Backtest(
        stream=spec.name,
        from_ms=when.from_ms,
        until_ms=when.until_ms,
        n_events=len(when.events),
        n_judged=int(when.events.is_judged.sum()),
        n_frauds=int((when.events.is_fraud & when.events.is_judged).sum()),
        capacity=capacity,
        value=value,
        outcomes=outcomes,
        live=checks,
        comparison=comparison,
    )
    return _publish(settings, spec, lake, result)


@stage("find the models")
def _find_models(settings: Settings, stream: Stream, names: Sequence[str]) -> list[Candidate]:
    found = candidates.candidates(settings, stream, names)
    for one in found:
        run_log().info("%s: version %d, digest %s, %s", one.name, one.version, one.digest[:12], one.why)
    return found


@stage("read the period from the lake")
def _read_period(
    settings: Settings,
    stream: Stream,
    lake: Lake,
    models: Sequence[Candidate],
    since: datetime | None,
    until: datetime | None,
    value: str | None,
    truth: Path | None,
) -> Period:
    until_ms = ms_of(until) if until else lake.end_ms()
    from_ms = ms_of(since) if since else max(one.seen_until_ms for one in models)
    if from_ms == UNKNOWN_MS:
        raise NothingToTestError(f"{models[0].why}; give the start of the period with --from")
    if from_ms >= until_ms:
        raise NothingToTestError(
            f"the period from {rfc3339(from_ms)} to {rfc3339(until_ms)} is empty; by default it begins where the "
            "training of the models ends, and ends with the lake: run `unmask ingest`, or give --from and --to"
        )
    with progress.shown("features") as show:
        table = feature_table(
            lake,
            stream,
            settings.features(stream),
            workers=settings.workers(),
            progress=lambda done, n: show(done / max(n, 1), f"{done:,} of {n:,} events and labels"),
        )
    found = period.period_of(lake, stream, table, from_ms, until_ms, value=value, truth=truth)
    n_frauds = int((found.events.is_fraud & found.events.is_judged).sum())
    run_log().info(
        "%s events from %s to %s, %s of them with a final label, %s known frauds",
        *(f"{len(found.rows):,}", day_or_time(from_ms), day_or_time(until_ms)),
        *(f"{int(found.events.is_judged.sum()):,}", f"{n_frauds:,}"),
    )
    return found


@stage("score")
def _score(
    settings: Settings, stream: Stream, models: Sequence[Candidate], when: Period, window_ms: int
) -> list[Scored]:
    loaded = {one: model_of(settings, stream, one.digest) for one in models}
    with progress.shown("score") as show:
        found = trials.scores(loaded, stream, when, window_ms, show)
    run_log().info("%s scores computed", f"{sum(len(one.score) for one in found):,}")
    return found


@stage("read the live scores")
def _read_live_scores(lake: Lake, when: Period, models: Sequence[Candidate]) -> dict[str, Live]:
    return {one.digest: live_scores(lake, when.table, when.rows, one.digest) for one in models}


@stage("review the alerts of each day")
def _review(
    stream: Stream,
    lake: Lake,
    when: Period,
    scored: Sequence[Scored],
    budgets: Sequence[str],
    window_ms: int,
    capacity: int | None,
    seen: dict[str, int],
) -> list[Outcome]:
    window = period.window_of(lake, stream, when, when.from_ms - window_ms) if window_ms else None
    outcomes = []
    for one in scored:
        for budget in dict.fromkeys(budgets):
            n_seen = seen[one.candidate.digest]
            outcome = trials.trial(
                stream, when, one, budget, window=window, window_ms=window_ms, capacity=capacity, seen=n_seen
            )
            outcomes.append(outcome)
            figures = outcome.totals
            run_log().info(
                "%s: %s alerts, %s cases reviewed, %s of %s frauds caught",
                *(outcome.name, *(f"{figures[k] or 0:,.0f}" for k in ("alerts", "reviewed", "caught", "frauds"))),
            )
    return outcomes


@stage("compare with baselines")
def _compare_with_baselines(
    settings: Settings,
    stream: Stream,
    lake: Lake,
    scored: Scored,
    when: Period,
    truth: Path | None,
    seed: int,
) -> dict[str, float]:
    return against_baselines.against_baselines(
        settings, stream, lake, scored.candidate, scored.model, when.from_ms, when.until_ms, truth=truth, seed=seed
    )


@stage("publish the result")
def _publish(settings: Settings, stream: Stream, lake: Lake, found: Backtest) -> Backtest:
    drawn = charts(found)
    tags = lineage(stream, lake) | {
        "model.digest": ",".join(dict.fromkeys(one.digest for one in found.outcomes)),
        "since": rfc3339(found.from_ms),
        "until": rfc3339(found.until_ms),
    }
    name = f"{day_or_time(found.from_ms)} to {day_or_time(found.until_ms)}"
    with registry.open_run(
        f"{stream.name}/backtest", tracking_uri=settings.tracking_uri(), run_name=name, tags=tags | flow_run_tag()
    ) as run:
        found = replace(found, url=run.url)
        words = f"{report.headline(found)}.\n\n" + "\n".join(f"- {note}" for note in found.notes())
        run.describe(words)
        run.log_params({"capacity": found.capacity or "all", "value": found.value or "", "period": name})
        run.log_metrics({"events": found.n_events, "frauds": found.n_frauds} | dict(found.comparison))
        for one in found.outcomes:
            _log_outcome(run, one)
        for model, check in found.live.items():
            live = {"compared": check.n_compared, "scores_equal": check.n_scores_equal}
            live |= {"alerts_equal": check.n_alerts_equal}
            run.log_metrics({f"live/{what}/{model}": float(n) for what, n in live.items()})
        for key, (_, figure) in drawn.items():
            run.log_figure(key, figure)
        head, rows = report.rows_of(found)
        run.log_table("outcomes", dict(zip(head, zip(*rows, strict=True), strict=True)))
        with TemporaryDirectory() as folder:
            (Path(folder) / "backtest.html").write_text(report.page(found, list(drawn.values())), encoding="utf-8")
            run.log_folder(Path(folder), "report")
    create_table_artifact(
        key=artifact_key(stream.name, "backtest"),
        table=[dict(zip(head, row, strict=True)) for row in rows],
        description=report.headline(found),
    )
    markdown = f"{words}\n\nPlots, days and the report: [MLflow run]({found.url})\n"
    create_markdown_artifact(key=artifact_key(stream.name, "backtest-notes"), markdown=markdown)
    return found


def _log_outcome(run: registry.Run, one: Outcome) -> None:
    """Totals, and curves over the days; a metric's name must not have a colon."""
    name = f"{one.model}/{one.budget.replace(':', '-').replace('/', ' a ')}"
    run.log_metrics({f"{what}/{name}": n for what, n in one.totals.items() if n is not None})
    for step, row in enumerate(one.days.drop("day").rows(named=True)):
        run.log_metrics({f"days/{what}/{name}": float(n) for what, n in row.items()}, step=step)
