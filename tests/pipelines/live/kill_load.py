"""The load of the kill test: events with everything that goes wrong in them, and labels, at a steady pace."""

import heapq
import json
import random
import threading
import time
from collections import deque
from typing import Any

from pipelines.contracts.stream import Stream
from pipelines.kafka.connection import Connection
from pipelines.kafka.port import Message

TICK_S = 0.02
COUNTRIES = ("DE", "FR", "PL", "ES", "IT", "NL")


class Load(threading.Thread):
    """Sends until `stop`. A message that must be refused names the rule in its header `planted`."""

    def __init__(self, connection: Connection, stream: Stream, *, per_s: int, seed: int) -> None:
        super().__init__(name="load")
        self.connection, self.stream, self.per_s = connection, stream, per_s
        self.random = random.Random(seed)
        self.stopping = threading.Event()
        self.n_events = self.n_labels = 0
        self.failure: BaseException | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=30_000)
        self._labels: list[tuple[float, int, bytes, bytes]] = []  # heap: when, tie-break, key, value

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        """Stop sending; everything sent is stored afterwards."""
        self.stopping.set()
        self.join()
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        started = time.time()
        with self.connection.writer(linger_ms=0) as writer:
            while not self.stopping.is_set():
                now = time.time()
                while self.n_events < (now - started) * self.per_s:
                    key, value, planted = self._event(now)
                    headers = [("planted", planted.encode())] if planted else []
                    writer.send(Message(self.stream.topic("events"), value, key, headers=headers))
                    self.n_events += 1
                while self._labels and self._labels[0][0] <= now:
                    _, _, key, value = heapq.heappop(self._labels)
                    writer.send(Message(self.stream.topic("labels"), value, key))
                    self.n_labels += 1
                writer.flush()
                time.sleep(TICK_S)

    def _event(self, now: float) -> tuple[bytes | None, bytes | None, str]:
        chance = self.random
        fresh = self._fresh(now)
        draw = chance.random()
        if draw < 0.03 and self._recent:
            event = dict(self._recent[-chance.randrange(1, min(50, len(self._recent)) + 1)])
            if chance.random() < 0.5:
                event["amount"] = 1.0  # the same id with other content is a duplicate all the same
        elif draw < 0.05 and self._recent:
            event = dict(chance.choice(self._recent))
        elif draw < 0.08:
            return self._broken(fresh)
        else:
            event = fresh
            self._recent.append(event)
            if chance.random() < 0.15:
                self._report(event, now)
        return event["card"].encode(), json.dumps(event).encode(), ""

    def _fresh(self, now: float) -> dict[str, Any]:
        chance = self.random
        ms = int(now * 1000)
        if chance.random() < 0.05:
            ms -= chance.choice((chance.randrange(5_000), chance.randrange(90_000)))
        event: dict[str, Any] = {
            "id": f"e{self.n_events}",
            "at": ms
            if chance.random() < 0.5
            else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03d}Z",
            "card": f"c{self._entity(5_000)}",
            "shop": self._entity(3_000),
            "amount": round(chance.lognormvariate(3, 1), 2),
            "pieces": chance.randrange(5),
            "country": chance.choice(COUNTRIES),
        }
        for name in ("shop", "amount", "pieces", "country"):
            if chance.random() < 0.02:
                del event[name]
        if chance.random() < 0.01:
            event["colour"] = "unknown to the stream file"
        return event

    def _entity(self, n: int) -> int:
        """One of `n`; a few have much to do (the slow reference is quadratic in an entity's past)."""
        return self.random.randrange(20 if self.random.random() < 0.05 else n)

    def _broken(self, event: dict[str, Any]) -> tuple[bytes | None, bytes | None, str]:
        """One of the ways to break the contract."""
        key = event["card"].encode()
        ways: list[tuple[str, dict[str, Any]]] = [
            ("missing_field", {"id": None}),
            ("missing_field", {"at": None}),
            ("missing_field", {"card": None}),
            ("wrong_type", {"amount": "12"}),
            ("wrong_type", {"at": "2026-01-01T00:00:00"}),
            ("out_of_range", {"amount": -1}),
            ("out_of_range", {"amount": 1e9}),
            ("too_long", {"country": "x" * 21}),
            ("too_big", {"colour": "x" * 3_000}),
            ("future_timestamp", {"at": int(time.time() * 1000) + 900_000}),
        ]
        rule, change = self.random.choice([*ways, ("bad_json", {}), ("not_finite", {}), ("wrong_key", {})])
        if rule == "bad_json":
            return key, self.random.choice((None, b"", b"{", b"\xff\xfe", b"nonsense", b'{"id": "\xed\xa0\x80"}')), rule
        if rule == "not_finite":
            return key, json.dumps(event | {"amount": float("nan")}).encode(), rule
        if rule == "wrong_key":
            return self.random.choice((None, b"", b"another")), json.dumps(event).encode(), rule
        return key, json.dumps(event | change).encode(), rule

    def _report(self, event: dict[str, Any], now: float) -> None:
        chance = self.random
        label: dict[str, Any] = {name: event[name] for name in ("id", "at", "card", "shop") if name in event}
        label |= {"label": 1, "labelled_at": int(now * 1000), "source": "kill test"}
        due = now + 3 * chance.random()
        key = event["card"].encode()
        reports = [(due, label)]
        if chance.random() < 0.1:
            reports.append((due + 1, label))
        if chance.random() < 0.1:
            reports.append((due + 2 * chance.random(), label | {"label": 0}))
        if chance.random() < 0.05:
            reports.append((due, label | {"label": 7}))
        for when, value in reports:
            heapq.heappush(self._labels, (when, chance.getrandbits(60), key, json.dumps(value).encode()))
