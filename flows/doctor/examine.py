"""All checks of a stream, side by side."""

from collections.abc import Iterator
from dataclasses import replace

from flows.doctor import installed, keeping, scorer, servers, sizing, topics
from flows.doctor.finding import Check, Finding, ask_all, error
from flows.doctor.kafka import KafkaFacts
from flows.doctor.sizing import Load
from flows.settings import Settings
from pipelines.contracts.stream import Stream
from pipelines.errors import BrokerError, LoginError, UnmaskError

SLOW_S = 60.0  # once a server has answered: importing MLflow's client, reading snapshots


def examine(settings: Settings, stream: Stream, words: str, load: Load) -> list[Finding]:
    """Look at everything; changes nothing.

    Args:
        words: `--stream FILE`, for the commands.
        load: what is expected; what is None is taken from a running scorer.
    """
    password = settings.sasl_password.get_secret_value() if settings.sasl_password else ""
    checks = [
        Check("installed", "installed", lambda: installed.look(settings)),
        Check("servers", "MLflow", lambda: servers.mlflow(settings)),
        Check("servers", "Prefect", lambda: servers.prefect(settings, stream, words), 30.0),
        Check("servers", "snapshots", lambda: servers.snapshots(settings, stream), 15.0),
        Check("topics", "Kafka", lambda: _kafka(settings, stream, words, load), 30.0),
        Check("scorer", "status", lambda: scorer.look(settings, stream, words)),
        Check("scorer", "champion", lambda: scorer.champion(settings, stream, words), SLOW_S),
        Check("scorer", "start", lambda: scorer.start(settings, stream, words), SLOW_S),
    ]
    return ask_all(checks, secrets=[password] if password else [])


def _kafka(settings: Settings, stream: Stream, words: str, load: Load) -> Iterator[Finding]:
    """Topics, sizing and retention; without Kafka only the sizing."""
    facts = None
    try:
        facts = KafkaFacts.ask(settings.connection(), stream)
    except LoginError as refused:
        yield error(topics.SECTION, "Kafka", str(refused), "export KAFKA_SECURITY_PROTOCOL=..., KAFKA_SASL_...=...")
    except BrokerError as silent:
        fix = "unmask kafka start, or export KAFKA_BOOTSTRAP_SERVERS=host:port"
        yield error(topics.SECTION, "Kafka", str(silent), fix)
    except UnmaskError as unset:
        yield error(topics.SECTION, "Kafka", str(unset), "unmask kafka start")
    else:
        yield from topics.look(facts, words, settings.kafka_client)
    known = scorer.measured(settings, stream)
    given = {name: value for name, value in vars(load).items() if value is not None}
    n_partitions = facts.n_partitions("events") if facts and "events" in facts.topics else None
    yield from sizing.look(stream, replace(known, **given), settings.kafka_client, n_partitions)
    if facts and n_partitions:
        yield from keeping.look(settings, stream, facts, words)
