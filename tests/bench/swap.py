"""What a change of the model costs: gaps between commits, time until an order holds, every event scored once.

    python -m tests.bench.swap [--seconds 60] [--every 4] [--per-s 1000] [--replicas 1] [--shadow] [--out FILE]

`unmask score` in processes of their own, on a broker of its own, with small but real models, each of which is loaded;
orders go through the control topic. Times are the broker's, when it stored the progress records. A gap is near a swap
if it overlaps the time from 1.5 s before the first commit of the new model in a partition, when it is loaded, to 0.5 s
after.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from flows.local.kafka_server import start_broker
from flows.serve.live_scores import newest_scores
from pipelines.kafka import topics
from pipelines.lake import audit
from tests.flows.serve.cached import Home
from tests.flows.serve.live_run import live_run
from tests.patience import wait_until

WARM = 5_000  # events before the first order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two orders")
    parser.add_argument("--per-s", type=int, default=1_000, help="events per second")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--shadow", action="store_true", help="let a challenger score in shadow meanwhile")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        broker = start_broker(Path(folder) / "kafka")
        try:
            found = measured(Home(broker.bootstrap, Path(folder), patch), asked)
        finally:
            broker.stop()
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(home: Home, asked: argparse.Namespace) -> dict[str, object]:
    """Change the model every few seconds under load, and measure."""
    home.put("first", threshold=1.0)
    with live_run(home, replicas="abcd"[: asked.replicas], per_s=asked.per_s) as run:
        wait_until(lambda: len(newest_scores(home.rig.connection, home.stream, most=WARM)) >= WARM)
        threshold = run.share_above(0.01)
        n_orders = max(1, round(asked.seconds / asked.every))
        models = [home.put(f"model-{n}", threshold=threshold) for n in range(n_orders)]
        if asked.shadow:
            shadow = {home.stream.topic("shadow"): home.rig.n_partitions}
            topics.create_topics(home.rig.connection, shadow, config=topics.KEEP_FOR_EVER)
            run.ann.shadow(home.put("challenger", threshold=threshold), why="bench")
        since_ms = time.time() * 1000
        for model in models:
            run.ann.use(model, why="bench")
            time.sleep(asked.every)
        until_ms = time.time() * 1000
        run.load.stop()
        run.wait_until_all_is_out()
        told = [run.status_of(replica)["shadow"] for replica in run.replicas]
        for replica in run.replicas:
            run.stop(replica)
    holds = audit.reconcile(home.rig.connection, home.stream).holds
    across, near, others = run.gaps_ms(since_ms=int(since_ms), until_ms=int(until_ms))
    effect_s = run.effect_s()
    scores = newest_scores(home.rig.connection, home.stream, most=10**9)
    return {
        "events": run.load.n_events,
        "events_per_s": asked.per_s,
        "replicas": asked.replicas,
        "orders": n_orders,
        "reconciled": holds,
        "scored_twice": len(scores) - len(scores.unique(["partition", "offset"])),
        "models_in_scores": scores["model"].n_unique(),
        "gap_across_a_swap_ms": _spread(across),
        "gap_near_a_swap_ms": _spread(near),
        "other_gaps_ms": _spread(others),
        "order_to_effect_s": _spread(effect_s),
        "shadow": told if asked.shadow else None,
    }


def _spread(values: list[int] | list[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"n": len(values), "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": max(values)}


if __name__ == "__main__":
    main()
