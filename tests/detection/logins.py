"""Simulated logins of users with habits, with anomalies of three kinds. Fixed before any tuning."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.contracts.stream import DAY_MS, HOUR_MS, Stream
from pipelines.contracts.stream_file import parse

KINDS = {1: "burst", 2: "takeover", 3: "exfiltration"}
START_MS = 1_767_225_600_000  # 2026-01-01
_COUNTRIES = np.array(["DE", "FR", "NL", "PL", "ES", "IT", "GB", "US", "IN", "BR", "JP", "ZA", "RO", "TR", "VN", "NG"])
_SHARES = np.array([0.25, 0.15, 0.12, 0.08, 0.08, 0.07, 0.07, 0.06, 0.03, 0.02, 0.02, *[0.01] * 5])
_AGENTS = np.array(
    [
        f"{browser}/{system}"
        for browser in ("chrome", "firefox", "safari", "edge")
        for system in ("windows", "mac", "linux", "android", "ios")
    ]
)
_STREAM = """
[stream]
name = "logins"
event_id = "login_id"
event_time = "at"
entities = ["user_id"]

[fields]
login_id = { type = "text", max_length = 64 }
at = { type = "time" }
user_id = { type = "text", max_length = 64 }
country = { type = "category", max_length = 8 }
agent = { type = "category", max_length = 64 }
bytes = { type = "number", min = 0 }

[[features]]
entity = "user_id"
windows = ["1h", "1d", "7d", "30d", "all"]
stats = ["count"]

[[features]]
entity = "user_id"
field = "bytes"
windows = ["30d", "all"]
stats = ["mean", "std", "wmean", "wratio"]

[[features]]
entity = "user_id"
stats = ["since_last"]

[[features]]
entity = "user_id"
windows = ["all"]
stats = ["hour_share"]

[[features]]
entity = "user_id"
field = "country"
windows = ["all"]
stats = ["share"]

[[features]]
entity = "user_id"
field = "agent"
windows = ["all"]
stats = ["share"]

[alerts]
budget = { rate = 0.005 }
"""


def stream() -> Stream:
    """The stream of the logins."""
    return parse(_STREAM)


def logins(*, seed: int, n_users: int = 400, days: int = 60, per_day: float = 4.0, n_each: int = 48) -> pl.DataFrame:
    """Logins by rising time.

    Args:
        seed: seed of everything.
        n_users: number of users, who log in about `per_day` times a day.
        days: length of the stream. Anomalies start after ten days.
        n_each: takeovers and exfiltrations, and a quarter as many bursts of twelve logins within a minute.

    Returns:
        Columns `login_id, at, user_id, country, agent, bytes, kind`; kind is 0 for an ordinary login, else of `KINDS`.
    """
    random = np.random.default_rng(seed)
    home, second = (random.choice(len(_COUNTRIES), n_users, p=_SHARES / _SHARES.sum()) for _ in range(2))
    agents = random.integers(0, len(_AGENTS), (n_users, 2))
    hour = random.normal(10.5, 2.5, n_users)
    volume = random.lognormal(8, 1.0, n_users)
    parts = [_ordinary(random, days, per_day, home, second, agents, hour, volume)]

    def odd(user: NDArray[np.int64], time_ms: NDArray[np.float64], kind: int) -> dict[str, NDArray]:
        return {
            "time_ms": time_ms.astype(np.int64),
            "user": user,
            "country": home[user],
            "agent": agents[user, 0],
            "bytes": volume[user] * random.lognormal(0, 0.7, len(user)),
            "kind": np.full(len(user), kind, np.int8),
        }

    user = np.repeat(random.integers(0, n_users, n_each // 4), 12)
    start = np.repeat(random.uniform(10 * DAY_MS, days * DAY_MS, n_each // 4), 12)
    parts.append(odd(user, start + random.uniform(0, 60_000, len(user)), 1))
    user, day = random.integers(0, n_users, n_each), random.integers(10, days, n_each)
    taken = odd(user, day * DAY_MS + (3 + random.uniform(-1, 1, n_each)) * HOUR_MS, 2)
    taken["country"] = (home[user] + random.integers(1, len(_COUNTRIES), n_each)) % len(_COUNTRIES)
    taken["agent"] = (agents[user, 0] + random.integers(1, len(_AGENTS), n_each)) % len(_AGENTS)
    parts.append(taken)
    user, day = random.integers(0, n_users, n_each), random.integers(10, days, n_each)
    leak = odd(user, day * DAY_MS + ((hour[user] + random.normal(0, 2, n_each)) % 24) * HOUR_MS, 3)
    leak["bytes"] = volume[user] * random.uniform(25, 80, n_each)
    parts.append(leak)
    return _frame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, seed)


def _ordinary(
    random: np.random.Generator,
    days: int,
    per_day: float,
    home: NDArray[np.int64],
    second: NDArray[np.int64],
    agents: NDArray[np.int64],
    hour: NDArray[np.float64],
    volume: NDArray[np.float64],
) -> dict[str, NDArray]:
    user = np.repeat(np.arange(len(home)), random.poisson(random.gamma(4, per_day / 4, len(home)) * days))
    n = len(user)
    at = random.normal(hour[user] + random.choice([0, 4], n, p=[0.6, 0.4]), 1.8, n) % 24
    country = np.where(random.random(n) < 0.02, second[user], home[user])
    travels = random.random(n) < 0.003
    country[travels] = random.integers(0, len(_COUNTRIES), travels.sum())
    agent = agents[user, (random.random(n) < 0.2).astype(int)]
    new = random.random(n) < 0.004
    agent[new] = random.integers(0, len(_AGENTS), new.sum())
    return {
        "time_ms": (random.integers(0, days, n) * DAY_MS + at * HOUR_MS).astype(np.int64),
        "user": user,
        "country": country,
        "agent": agent,
        "bytes": volume[user] * random.lognormal(0, 0.7, n),
        "kind": np.zeros(n, np.int8),
    }


def _frame(columns: dict[str, NDArray], seed: int) -> pl.DataFrame:
    order = np.argsort(columns["time_ms"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    return pl.DataFrame(
        {
            "login_id": [f"{seed}-{i}" for i in range(len(order))],
            "at": pl.Series(columns["time_ms"] + START_MS).cast(pl.Datetime("ms", "UTC")),
            "user_id": [f"u{user:04d}" for user in columns["user"]],
            "country": _COUNTRIES[columns["country"]],
            "agent": _AGENTS[columns["agent"]],
            "bytes": np.round(columns["bytes"]),
            "kind": columns["kind"],
        }
    )
