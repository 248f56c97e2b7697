"""The judge of the kill test: `python -m tests.pipelines.live.oracle`. Reads the raw logs with a consumer of its own,
applies its own rules for order, duplicates and labels and the slow reference for windows, and compares everything
that was published. Shares with the product only the stream file.
"""

import argparse
import json
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
import xxhash
from kafka import KafkaConsumer, TopicPartition

from pipelines.contracts.stream import Stream
from tests.pipelines.features.reference import Item, Reference
from tests.pipelines.live.kill_stream import N_PARTITIONS, stream_named

N_SHARDS = 4
THRESHOLD = 1 - 2**-12


class Raw(NamedTuple):
    """A record at its place: (effective time, labels before events, partition, offset, turn)."""

    place: tuple[int, int, int, int, int]
    kind: str
    partition: int
    offset: int
    clock_ms: int
    arrival_ms: int
    told: bool
    planted: str
    value: Any


def read(bootstrap: str, topic: str) -> Iterable[Any]:
    """Every committed record of a topic."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, group_id=None, enable_auto_commit=False, isolation_level="read_committed"
    )
    partitions = [TopicPartition(topic, p) for p in range(N_PARTITIONS)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(tp) < end for tp, end in ends.items()):
        for records in consumer.poll(timeout_ms=500, max_records=20_000).values():
            yield from records
    consumer.close(autocommit=False)


def parsed(value: bytes | None) -> Any:
    try:
        return json.loads(value or b"")
    except ValueError:
        return None


def places_of(progress: Iterable[Any], problems: Counter[str]) -> dict[tuple[int, int, int], tuple[int, ...]]:
    """Where what came out of turn was folded; nothing may be told twice in two ways."""
    places: dict[tuple[int, int, int], tuple[int, ...]] = {}
    for record in progress:
        for kind, partition, offset, *key in json.loads(record.value)["out_of_turn"]:
            if places.setdefault((kind, partition, offset), tuple(key)) != tuple(key):
                problems["a place told in two ways"] += 1
    return places


def in_order(bootstrap: str, stream: Stream, places: dict[tuple[int, int, int], tuple[int, ...]]) -> list[Raw]:
    """All events and labels, in the one order."""
    everything = []
    for kind, lag in ((0, stream.labels.lag_ms if stream.labels else 0), (1, 0)):
        newest = [0] * N_PARTITIONS
        name = ("labels", "events")[kind]
        for record in read(bootstrap, stream.topic(name)):
            p = record.partition
            arrival = newest[p] = max(newest[p], record.timestamp)
            told = places.get((kind, p, record.offset))
            place = told or (arrival + lag, kind, p, record.offset, 0)
            planted = dict(record.headers).get("planted", b"").decode()
            everything.append(
                Raw(place, name, p, record.offset, place[0], arrival, told is not None, planted, parsed(record.value))  # type: ignore[arg-type]
            )
    return sorted(everything, key=lambda raw: raw.place)


def time_ms(value: Any) -> int:
    return value if isinstance(value, int) else round(datetime.fromisoformat(value).timestamp() * 1000)


def hashed(value: Any) -> int:
    return 0 if value is None else xxhash.xxh3_64_intdigest(str(value).encode()) or 1


class Expected(NamedTuple):
    """What must have been published about an event: a score (numbers follow), a refusal or a duplicate."""

    raw: Raw
    rule: str = ""
    original: int | None = None
    late_ms: int = 0
    item: int = -1


def judged(stream: Stream, everything: list[Raw]) -> tuple[list[Expected], list[Item]]:
    """Own rules: which events count, which repeat another, which labels move a fraud count."""
    expected: list[Expected] = []
    items: list[Item] = []
    seen: dict[tuple[int, str], tuple[int, int]] = {}
    newest = [0] * N_PARTITIONS
    reported: dict[str, int] = {}
    for raw in everything:
        value = raw.value
        if raw.kind == "labels":
            delta = 0
            if value["label"] == 1 and value["id"] not in reported:
                reported[value["id"]] = delta = 1
            elif value["label"] == 0 and value["id"] in reported:
                delta = -reported.pop(value["id"])
            elif value["label"] not in (0, 1):
                continue
        elif raw.planted:
            expected.append(Expected(raw, raw.planted))
            continue
        else:
            first = seen.get((raw.partition, value["id"]))
            if first and raw.clock_ms - first[1] <= stream.duplicate_memory_ms:
                expected.append(Expected(raw, "duplicate", first[0]))
                continue
            seen[raw.partition, value["id"]] = (raw.offset, raw.clock_ms)
            at = time_ms(value["at"])
            expected.append(Expected(raw, late_ms=max(0, newest[raw.partition] - at), item=len(items)))
            newest[raw.partition] = max(newest[raw.partition], at)
        card, shop = hashed(value["card"]), hashed(value.get("shop"))
        items.append(
            Item(
                raw.clock_ms,
                time_ms(value["at"]),
                (card, shop),
                (value.get("amount", math.nan), value.get("pieces", math.nan)),
                (hashed(value.get("country")), card, shop),
                delta if raw.kind == "labels" else None,
            )
        )
    return expected, items


def windows_of(task: tuple[str, int, int, list[tuple[int, Item]]]) -> dict[int, list[float]]:
    """Features of one entity's items of one shard, by the slow reference; item number -> values."""
    name, column, maturity_ms, items = task
    stream = stream_named(name)
    entity = stream.entities[column]
    features = [f for f in stream.features if f.entity == entity]
    reference = Reference(features, [entity], stream.numbers, stream.hashed, maturity_ms)
    values = {}
    for number, item in items:
        row = reference.fold(item._replace(entities=(item.entities[column],)))
        if row is not None:
            values[number] = row
    return values


def rows_of(stream: Stream, items: list[Item]) -> list[list[float] | None]:
    """Every event's numeric row."""
    columns = {entity: [i for i, f in enumerate(stream.features) if f.entity == entity] for entity in stream.entities}
    assert stream.labels is not None
    tasks = []
    for column in range(len(stream.entities)):
        shards: list[list[tuple[int, Item]]] = [[] for _ in range(N_SHARDS)]
        for number, item in enumerate(items):
            shards[item.entities[column] % N_SHARDS].append((number, item))
        tasks += [(stream.name, column, stream.labels.maturity_ms, shard) for shard in shards]
    rows: list[list[float] | None] = []
    for item in items:
        hour = (item.time_ms % 86_400_000) / 3_600_000
        weekday = float((item.time_ms // 86_400_000 + 3) % 7)
        empty = [math.nan] * len(stream.features)
        rows.append(None if item.delta is not None else [*item.numbers, hour, weekday, *empty])
    start = len(stream.numbers) + 2
    with Pool(2) as pool:
        for task, values in zip(tasks, pool.map(windows_of, tasks, chunksize=1), strict=True):
            for number, found in values.items():
                row = rows[number]
                assert row is not None
                for place, value in zip(columns[stream.entities[task[1]]], found, strict=True):
                    row[start + place] = value
    return rows


def score_of(row: list[float], country: int, model: str) -> float:
    """The score of the model that a score names."""
    total = 0.0
    for place, value in enumerate(row, start=1):
        total += place * (0.0 if math.isnan(value) else value)
    total = abs(total + float(country % 7)) * {"linear": 1.0, "doubled": 2.0}[model]
    return float(f"{float(np.float32(total / (1 + total))):.9g}")


def judge(bootstrap: str, name: str) -> dict[str, Any]:
    """Compare everything; the answer's `problems` is empty exactly if nothing is lost, doubled or different."""
    stream = stream_named(name)
    problems: Counter[str] = Counter()
    progress = list(read(bootstrap, stream.topic("progress")))
    places = places_of(progress, problems)
    everything = in_order(bootstrap, stream, places)
    expected, items = judged(stream, everything)
    rows = rows_of(stream, items)

    published: dict[str, dict[tuple[int, int], Any]] = {}
    for kind in ("scores", "alerts", "refused"):
        found = published[kind] = {}
        for record in read(bootstrap, stream.topic(kind)):
            value = json.loads(record.value)
            if value.get("kind") == "scoring_delayed":
                continue  # about a partition, not an event
            source = (value["source"]["partition"], value["source"]["offset"])
            if source in found:
                problems[f"{kind}: doubled"] += 1
            if source[0] != record.partition:
                problems[f"{kind}: in a foreign partition"] += 1
            found[source] = value

    counts: Counter[str] = Counter()
    for one in expected:
        source = (one.raw.partition, one.raw.offset)
        score, alert = published["scores"].pop(source, None), published["alerts"].pop(source, None)
        refused = published["refused"].pop(source, None)
        if one.rule:
            counts["duplicates" if one.rule == "duplicate" else "refused"] += 1
            if refused is None:
                problems["refused: lost"] += 1
            elif (refused["rule"], refused["duplicate_of"]) != (one.rule, one.original):
                problems[f"refused: {refused['rule']} instead of {one.rule}"] += 1
            if score or alert:
                problems["scored though refused"] += 1
            continue
        counts["scored"] += 1
        counts["late"] += one.late_ms > 0
        counts["out of turn"] += one.raw.told
        if refused is not None:
            problems[f"refused though valid: {refused['rule']}"] += 1
        if score is None:
            problems["scores: lost"] += 1
            continue
        row, item = rows[one.item], items[one.item]
        assert row is not None
        hash_ = xxhash.xxh3_64_hexdigest(struct.pack(f"<{len(row)}dQ", *row, item.hashed[0]))
        value = score_of(row, item.hashed[0], score["model"])
        counts[f"by {score['model']}"] += 1
        for what, seen, wanted in (
            ("event id", score["event_id"], one.raw.value["id"]),
            ("features", score["features_hash"], hash_),
            ("value", score["score"], value),
            ("lateness", score["late_ms"], one.late_ms),
            ("turn", score["out_of_order"], one.raw.told),
            ("alert mark", score["alert"], value > THRESHOLD),  # what is published decides
            ("alert", alert and alert["score"], value if value > THRESHOLD else None),
        ):
            if seen != wanted:
                problems[f"scores: {what} differs"] += 1
        counts["alerts"] += alert is not None
        fraud = next(i for i, name in enumerate(stream.numeric_columns) if "fraud_count" in name)
        counts["with frauds"] += row[fraud] > 0
    for kind, left in published.items():
        if left:
            problems[f"{kind}: about nothing"] += len(left)

    last = {record.partition: json.loads(record.value) for record in progress}
    per_partition = Counter(one.raw.partition for one in expected)
    for partition, told in last.items():
        total = told["n_scored"] + told["n_refused"] + told["n_duplicates"]
        if total != per_partition[partition] or told["next_offset"] - told["start"] != total:
            problems["progress: in is not scored + refused + duplicates"] += 1
    for counter in ("scored", "refused", "duplicates"):
        if sum(told[f"n_{counter}"] for told in last.values()) != counts[counter]:
            problems[f"progress: n_{counter} differs"] += 1
    counts["events"] = len(expected)
    counts["labels"] = len(everything) - len(expected)
    counts["owners"] = len({json.loads(record.value)["owner"] for record in progress})
    return {"counts": dict(counts), "problems": dict(problems)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--stream", required=True)
    asked = parser.parse_args()
    verdict = judge(asked.bootstrap, asked.stream)
    print(json.dumps(verdict))
    sys.exit(1 if verdict["problems"] else 0)


if __name__ == "__main__":
    main()
