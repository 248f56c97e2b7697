"""The topics of a stream: which exist, partitions, timestamps, sizes, codecs, copies."""

import importlib.util
from collections.abc import Iterator

from flows.doctor.finding import Finding, error, ok, warning
from flows.doctor.kafka import KafkaFacts
from pipelines.contracts.stream import TOPICS
from pipelines.kafka.port import MAX_REQUEST_BYTES, TRANSACTION_MS
from pipelines.live.setting import ScorerSetting

SECTION = "topics"
SINGLE = ("clock", "control", "resent")  # one partition: all replicas read the same order
OPTIONAL = ("control", "resent", "shadow")
CODECS = {"gzip": "zlib", "snappy": "snappy", "lz4": "lz4", "zstd": "zstandard"}  # and the module that reads it
TOP = 2**63 - 1


def look(facts: KafkaFacts, words: str, client: str) -> Iterator[Finding]:
    """Every check of the topics.

    Args:
        words: `--stream FILE`, for the commands.
        client: the value of KAFKA_CLIENT.
    """
    yield from _cluster(facts)
    yield from _missing(facts, words)
    if "events" not in facts.topics:
        return
    yield from _partitions(facts, words)
    yield from _timestamps(facts, words)
    yield from _policies(facts)
    yield from _sizes(facts)
    yield from _codecs(facts, client)
    yield from _copies(facts)


def _cluster(facts: KafkaFacts) -> Iterator[Finding]:
    where = facts.connection.bootstrap
    if facts.cluster is None:
        fix = "allow this login DescribeConfigs on the cluster, or run `unmask doctor` as an administrator"
        yield warning(SECTION, "brokers", f"{where} answers, but does not tell its settings", fix)
        return
    said = facts.cluster
    version = f"Kafka {said.version}" if said.version else "version not told by confluent-kafka"
    yield ok(SECTION, "brokers", f"{said.n_brokers} at {where}, {version}")
    longest_ms = int(said.settings.get("transaction.max.timeout.ms", TRANSACTION_MS))
    if longest_ms < TRANSACTION_MS:
        found = f"transaction.max.timeout.ms={longest_ms}; the scorer needs {TRANSACTION_MS}"
        yield error(SECTION, "brokers", found, _set_brokers(facts, "transaction.max.timeout.ms", TRANSACTION_MS))
    session_ms = round(ScorerSetting.session.total_seconds() * 1000)
    least = int(said.settings.get("group.min.session.timeout.ms", 0))
    most = int(said.settings.get("group.max.session.timeout.ms", TOP))
    if not least <= session_ms <= most:
        found = f"sessions last {least} to {most} ms; that of the scorer is {session_ms} ms"
        name = "group.min.session.timeout.ms" if session_ms < least else "group.max.session.timeout.ms"
        yield error(SECTION, "brokers", found, _set_brokers(facts, name, session_ms))


def _set_brokers(facts: KafkaFacts, name: str, value: int) -> str:
    return f"set {name}={value} in the configuration of the brokers of {facts.connection.bootstrap}, and restart them"


def _missing(facts: KafkaFacts, words: str) -> Iterator[Finding]:
    wanted = [kind for kind in TOPICS if kind != "labels" or facts.stream.labels]
    missing = [kind for kind in wanted if kind not in facts.topics]
    fix = f"unmask topics create {words}"
    if "events" in facts.topics:
        fix += f" --partitions {facts.n_partitions('events')}" + ("" if facts.stamps("events") else " --replay")
    for kind in missing:
        say = warning if kind in OPTIONAL else error
        yield say(SECTION, facts.stream.topic(kind), "does not exist", fix)
    if not missing:
        yield ok(SECTION, "topics", f"all {len(wanted)} of {facts.stream.topics} exist")


def _partitions(facts: KafkaFacts, words: str) -> Iterator[Finding]:
    n = facts.n_partitions("events")
    bad = False
    for kind in facts.topics:
        has, wants = facts.n_partitions(kind), 1 if kind in SINGLE else n
        if has == wants:
            continue
        bad, found = True, f"{has} partitions; must have {wants}"
        if kind in SINGLE:
            fix = "use other topics: set `topics` in the stream file, then unmask topics create"
        elif has < wants:
            topic = f"--alter --topic {facts.stream.topic(kind)} --partitions {wants}"
            fix = f"unmask recover {words} --yes" if kind != "shadow" else facts.tool("kafka-topics.sh", topic)
        else:
            topic = f"--alter --topic {facts.stream.topic('events')} --partitions {has}"
            fix = f"{facts.tool('kafka-topics.sh', topic)}; then unmask recover {words} --yes"
        yield error(SECTION, facts.stream.topic(kind), found, fix)
    if not bad:
        yield ok(SECTION, "partitions", f"{n} each")


def _timestamps(facts: KafkaFacts, words: str) -> Iterator[Finding]:
    inputs = [kind for kind in facts.stream.inputs if kind in facts.topics]
    unstamped = [facts.stream.topic(kind) for kind in inputs if not facts.stamps(kind)]
    if not unstamped:
        yield ok(SECTION, "timestamps", "set by the broker on arrival (live)")
    elif len(unstamped) == len(inputs) and facts.is_replay:
        yield ok(SECTION, "timestamps", "those of a replay (CreateTime); before live events: unmask topics live")
    else:
        found = "message.timestamp.type is CreateTime; must be LogAppendTime, as this is not a replay"
        for topic in unstamped:
            yield error(SECTION, topic, found, f"unmask topics live {words}")


def _policies(facts: KafkaFacts) -> Iterator[Finding]:
    """Compaction deletes records between others, which every topic of a stream needs."""
    for kind, settings in facts.settings.items():
        if "compact" in (policy := settings.get("cleanup.policy", "delete")):
            found = f"cleanup.policy={policy}: records are lost, not only old ones"
            yield error(SECTION, facts.stream.topic(kind), found, facts.set_topic(kind, cleanup_policy="delete"))


def _sizes(facts: KafkaFacts) -> Iterator[Finding]:
    """Whether the topics take what the stream file allows; the scorer's own records are up to 1 MiB."""
    bad = False
    for kind in facts.topics:
        wants = facts.stream.max_message_bytes if kind in facts.stream.inputs else MAX_REQUEST_BYTES
        has = facts.number(kind, "max.message.bytes")
        if has < wants:
            bad, found = True, f"max.message.bytes={has}; the stream needs {wants}"
            yield warning(SECTION, facts.stream.topic(kind), found, facts.set_topic(kind, max_message_bytes=wants))
    if not bad:
        yield ok(SECTION, "message sizes", f"events up to {facts.stream.max_message_bytes:,} bytes are accepted")


def _codecs(facts: KafkaFacts, client: str) -> Iterator[Finding]:
    """Whether this client can read the codec that a topic has, or any where its producers choose."""
    lacks = {c for c, module in CODECS.items() if client == "kafka-python" and not importlib.util.find_spec(module)}
    set_by_topic = {kind: said.get("compression.type", "producer") for kind, said in facts.settings.items()}
    for kind, codec in set_by_topic.items():
        if codec in lacks or (codec == "producer" and lacks and kind in facts.stream.inputs):
            found = f"compression.type={codec}, but {client} cannot read {', '.join(sorted(lacks))} here"
            yield error(SECTION, facts.stream.topic(kind), found, "pip install 'kafka-python[crc32c,lz4,snappy,zstd]'")
    kinds = ", ".join(sorted(set(set_by_topic.values())))
    if not lacks:
        yield ok(SECTION, "codecs", f"compression.type={kinds}; {client} reads {', '.join(CODECS)}")


def _copies(facts: KafkaFacts) -> Iterator[Finding]:
    """Whether a broker may fail without loss or a stop."""
    bad = False
    for kind, topic in facts.topics.items():
        name, least = facts.stream.topic(kind), facts.number(kind, "min.insync.replicas")
        if topic.in_sync < least:
            found = f"{topic.in_sync} copies in sync, min.insync.replicas={least}: nothing can be written"
            fix = facts.set_topic(kind, min_insync_replicas=max(1, topic.copies - 1)) if topic.copies < least else (
                "start the brokers that are down"
            )  # fmt: skip
            yield error(SECTION, name, found, fix)
        elif topic.in_sync < topic.copies:
            yield warning(
                SECTION, name, f"{topic.in_sync} of {topic.copies} copies in sync", "start the brokers that are down"
            )
        elif topic.copies > 2 and least < 2:
            found = f"{topic.copies} copies, but min.insync.replicas={least}: one broker alone may confirm a record"
            yield warning(SECTION, name, found, facts.set_topic(kind, min_insync_replicas=2))
        else:
            continue
        bad = True
    copies = min(topic.copies for topic in facts.topics.values())
    if copies == 1 and facts.cluster and facts.cluster.n_brokers > 1:
        found = f"one copy on {facts.cluster.n_brokers} brokers: a lost disk loses records"
        yield warning(
            SECTION, "copies", found, "kafka-reassign-partitions.sh; new topics: unmask topics create --replication 3"
        )
    elif not bad:
        yield ok(SECTION, "copies", f"{copies} of each partition, all in sync")
