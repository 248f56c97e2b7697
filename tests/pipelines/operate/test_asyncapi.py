"""The JSON Schemas and the AsyncAPI document: made from the types, and true of what is really published."""

import gzip
import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from kafka import KafkaConsumer, TopicPartition
from msgspec.structs import replace

from flows.serve.follow import readable_alerts
from pipelines.contracts.messages import MESSAGE_FORMATS, MESSAGE_TYPES, AlertRecord
from pipelines.contracts.stream import TOPICS, StormRules, Stream
from pipelines.errors import UnmaskError
from pipelines.kafka import topics
from pipelines.kafka.letters import Place
from pipelines.kafka.topics import KEEP_FOR_EVER
from pipelines.live import storms
from pipelines.live.control import order_of, send_order
from pipelines.live.serving import Serving
from pipelines.live.wanted import obey_suppression
from pipelines.operate.asyncapi import CHANNELS, DOCUMENT, documents, text_of, write
from pipelines.operate.ledger import Ledger
from tests.flows.test_cli import unmask
from tests.patience import wait_until
from tests.pipelines.live.kill_stream import stream_named
from tests.pipelines.live.live_scorer import Linear
from tests.pipelines.live.rig import Rig, running

ROOT = Path(__file__).parents[3]
CHECKED_IN = ROOT / "pipelines/contracts/schemas"
# The schema of the AsyncAPI Initiative (package @asyncapi/specs 6.11.1, Apache 2.0).
OFFICIAL = json.loads(gzip.decompress((ROOT / "tests/pipelines/data/asyncapi-3.0.0.json.gz").read_bytes()))


def test_the_checked_in_documents_are_what_the_types_give() -> None:
    made = {name: text_of(document) for name, document in documents(None).items()}
    there = {path.name: path.read_bytes() for path in CHECKED_IN.iterdir()}
    assert there == made, "run `unmask schemas --out pipelines/contracts/schemas`; it says if a format must be raised"


def test_every_topic_and_every_published_message_has_its_place() -> None:
    assert tuple(CHANNELS) == TOPICS
    assert MESSAGE_TYPES.keys() == MESSAGE_FORMATS.keys()
    assert {MESSAGE_TYPES[name] for name in CHANNELS["alerts"][0]} == set(get_args(AlertRecord))
    named = {name for names, _, _ in CHANNELS.values() for name in names}
    assert {f"{name}.json" for name in named} | {DOCUMENT} == documents(None).keys()


@pytest.mark.parametrize("stream", [None, stream_named("a"), replace(stream_named("b"), labels=None)])
def test_the_document_is_asyncapi_and_its_references_lead_somewhere(stream: Stream | None) -> None:
    document = documents(stream)[DOCUMENT]
    Draft7Validator(OFFICIAL).validate(document)
    for reference in references(document):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    addresses = [channel["address"] for channel in document["channels"].values()]
    wanted = [kind for kind in TOPICS if kind != "labels" or stream is None or stream.labels]
    assert addresses == [stream.topic(kind) if stream else f"{{topics}}.{kind}" for kind in wanted]


def references(part: Any) -> list[str]:
    inside = part.values() if isinstance(part, Mapping) else part if isinstance(part, list) else ()
    own = [part["$ref"]] if isinstance(part, Mapping) and "$ref" in part else []
    return own + [found for each in inside for found in references(each)]


def test_the_official_schema_finds_mistakes() -> None:
    document = documents(None)[DOCUMENT]
    del document["operations"]["send_scores"]["action"]
    assert not Draft7Validator(OFFICIAL).is_valid(document)


def test_a_message_may_gain_fields_but_lose_none_in_the_same_format(tmp_path: Path) -> None:
    write(None, tmp_path)
    path = tmp_path / "alerts.json"

    def before(**fields: Any) -> None:
        """The readers of an earlier version had these fields."""
        schema = documents(None)["alerts.json"]
        known = {name: kind for name, kind in (schema["properties"] | fields).items() if kind is not None}
        schema |= {"properties": known, "required": [name for name in schema["required"] if name in known]}
        path.write_bytes(text_of(schema))

    before(reasons=None)
    write(None, tmp_path)
    assert "reasons" in msgspec.json.decode(path.read_bytes())["properties"]
    before(score={"type": "string"}, colour={"type": "string"})
    with pytest.raises(UnmaskError, match=r"score has another type; colour is gone\. Add .* in messages\.py"):
        write(None, tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"x-format": 2', b'"x-format": 1'))
    write(None, tmp_path)
    assert path.read_bytes() == text_of(documents(None)["alerts.json"])
    path.write_bytes(b"{")
    with pytest.raises(UnmaskError, match=r"alerts\.json: is not a JSON Schema .* another folder"):
        write(None, tmp_path)


def test_the_command_writes_the_documents_of_a_stream(tmp_path: Path) -> None:
    unmask("schemas", "--stream", "payments", "--out", str(tmp_path), home=tmp_path)
    event = msgspec.json.decode((tmp_path / "event.json").read_bytes())
    assert event["properties"]["amount"]["anyOf"][0] == {"type": "number", "minimum": 0.0, "maximum": 1e6}
    document = msgspec.json.decode((tmp_path / DOCUMENT).read_bytes())
    assert document["channels"]["alerts"]["address"] == "payments.alerts"
    assert (
        document["components"]["messages"]["alerts"]["headers"]["properties"]["ce_source"]["const"] == "unmask/payments"
    )


def test_every_published_message_keeps_its_schema(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storms, "MAX_LISTED", 4)
    rig = Rig(kafka, tmp_path)
    own = {rig.stream.topic(kind): 1 for kind in ("control", "resent")}
    topics.create_topics(rig.connection, own, config=KEEP_FOR_EVER)
    storm = StormRules(within_ms=500, per_day=12)
    rig.stream = replace(rig.stream, storms=storm, delayed_after_ms=1_000, review_share=0.9)
    serving = Serving(Linear(rig.stream))
    until = datetime(2199, 1, 1, tzinfo=UTC)
    suppressed = order_of("suppress", "", why="a test", by="me", entity="card", id="c4", until=until)
    obey_suppression(serving.suppressions, suppressed)
    send_order(rig.connection, rig.stream, suppressed)
    send_order(rig.connection, rig.stream, order_of("threshold", "linear", why="a test", by="me", threshold=0.5))
    ledger = Ledger(rig.connection, rig.stream)
    ledger.settle(ledger.claim([Place(0, 3, "abc")])[0], [Place(0, 3, "abc")])
    rig.send_raw(b"{", b"c0")
    rig.send_raw(label_of("e0"), b"c0", kind="labels")
    rig.send(20)  # not over the threshold
    for card in ("c0", "c1", "c2", "c3", "c4"):
        rig.send_many([event_of(f"{card}-{n}", card, 1e5) for n in range(20)], card.encode())
    time.sleep(1.2)  # beyond `delayed_after_ms`
    seen: set[type] = set()

    def every_kind_of_alert_came() -> bool:
        rig.send_raw(event_of(f"late-{rig.n_sent}", "c1", 1e5), b"c1")
        seen.update(type(alert) for alert in readable_alerts(rig.published("alerts")))
        return seen >= set(get_args(AlertRecord))

    with running(rig.scorer(serving=serving)) as run:
        wait_until(
            every_kind_of_alert_came,
            seen=lambda: sorted(kind.__name__ for kind in seen),
            alive=lambda: run.is_alive,
        )
        rig.wait_until_out()
    rig.stream = replace(rig.stream, packed_scores=True)
    with running(rig.scorer()):
        rig.send(20)
        rig.wait_until_out()

    found = documents(rig.stream)
    messages, checked = found[DOCUMENT]["components"]["messages"], set[str]()
    for kind, (names, _, _) in CHANNELS.items():
        for value, headers in all_records(kafka, rig, kind):
            if value == b"{":
                continue  # the broken event
            lines = [json.loads(line) for line in value.splitlines()]
            name = headers["ce_type"].removeprefix("unmask.") if headers else name_of(names, lines[0])
            assert name in names
            if headers:
                Draft202012Validator(messages[name]["headers"]).validate(headers)
            for line in lines:
                Draft202012Validator(found[f"{name}.json"]).validate(line)
                Draft202012Validator(found[f"{name}.json"]).validate(line | {"added_later": 1})
            checked.add(name)
    assert {name for names, _, _ in CHANNELS.values() for name in names} - checked == set(), "no such message came"


def all_records(kafka: str, rig: Rig, kind: str) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Value and headers of every committed record of a topic."""
    if kind == "shadow":  # nothing scores in shadow here; its records are packed scores
        return
    n = len(rig.published(kind))
    consumer = KafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest")
    topic = rig.stream.topic(kind)
    consumer.assign([TopicPartition(topic, p) for p in range(len(topics.partitions_of(rig.connection, topic)))])
    for record in islice(consumer, n):
        yield record.value, {key: value.decode() for key, value in record.headers}
    consumer.close()


def name_of(names: tuple[str, ...], message: dict[str, Any]) -> str:
    """The message without CloudEvents headers: the only one of its topic, or the one that its `kind` names."""
    return names[0] if len(names) == 1 else message["kind"]


def event_of(event_id: str, card: str, amount: float) -> bytes:
    return msgspec.json.encode(
        {"id": event_id, "at": int(time.time() * 1000), "card": card, "amount": amount, "shop": 1}
    )


def label_of(event_id: str) -> bytes:
    head = {"id": event_id, "at": int(time.time() * 1000), "card": "c0", "shop": 1}
    return msgspec.json.encode(head | {"label": 1, "labelled_at": int(time.time() * 1000), "source": "test"})
