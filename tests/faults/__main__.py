"""Kills scorers again and again under load, and judges every event against a slow reference.

python -m tests.faults --kills 20                                   one replica and two, 20 kills each: 8 minutes
python -m tests.faults --kills 200 --seed 3 --replicas 1,2 --out faults.json
                                                                    80 minutes; a second call continues where it stopped
python -m tests.faults --changes 30 --replicas 2                    replicas join, leave, die, stand still: 10 minutes
python -m tests.faults --minutes 30 --replicas 2 --out soak.json    the same for half an hour; memory must stay flat

Rounds of 20 kills, with a stream and the logs of its scorers of their own, on a broker of their own. Every second round
reads one partition late, so that much comes out of turn. Exit code 1 if anything was lost, doubled or different, or if
a round did not try what it must.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.local.kafka_server import start_broker
from tests.faults.round import Round, as_json, percentiles, run_round, wrong
from tests.faults.soak import report, run_soak, soak_wrong
from tests.pipelines.kafka.adapters import CLIENT

KILLS_A_ROUND = 20


def summary(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of all rounds together."""
    points, problems, counts = Counter[str](), Counter[str](), Counter[str]()
    for one in rounds:
        points.update(one["kills_by_point"])
        problems.update(one["problems"])
        counts.update(one["counts"])
    lost = sum(n for what, n in problems.items() if "lost" in what)
    doubled = sum(n for what, n in problems.items() if "doubled" in what or what == "scored though refused")
    load_s = sum(one["load_s"] for one in rounds)
    return {
        "kills": sum(points.values()),
        "kills_by_point": dict(points),
        "in_open_transaction": sum(one["in_open_transaction"] for one in rounds),
        "in_takeover": sum(one["in_takeover"] for one in rounds),
        "takeovers": sum(one["takeovers"] for one in rounds),
        "snapshot_restores": sum(one["snapshot_restores"] for one in rounds),
        "events": counts["events"],
        "labels": counts["labels"],
        "events_per_s": round(counts["events"] / load_s) if load_s else 0,
        "lost": lost,
        "duplicated": doubled,
        "wrong": sum(problems.values()) - lost - doubled,
        "out_of_order": counts["out of turn"],
        "restart_s": percentiles([s for one in rounds for s in one["restart_s"]]),
        "takeover_s": percentiles([s for one in rounds for s in one["takeover_s"]]),
    }


def rounds_of(kills: int, replicas: Sequence[int], seed: int, client: str, stream: str) -> list[Round]:
    """Rounds of at most `KILLS_A_ROUND` kills: first all with the first number of replicas, then with the next."""
    rounds = []
    for n in replicas:
        for number, first in enumerate(range(0, kills, KILLS_A_ROUND)):
            size = min(KILLS_A_ROUND, kills - first)
            wait_ms = -1_000 if number % 2 else 50
            one = Round("", size, n, seed=1_000 * seed + number, order_wait_ms=wait_ms, client=client, stream=stream)
            rounds.append(one)
    return rounds


def soaked(asked: argparse.Namespace) -> list[str]:
    """Run a soak on a broker of its own; what was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="unmask-soak-"))
    broker = start_broker(folder / "kafka")
    try:
        n = max(int(n) for n in asked.replicas.split(","))
        run = Round(broker.bootstrap, replicas=n, seed=asked.seed, client=asked.client, stream=asked.stream)
        outcome = run_soak(run, folder, changes=asked.changes, seconds=60 * asked.minutes)
    finally:
        broker.stop()
    report(run, outcome, asked.out)
    if found := soak_wrong(outcome):
        print(*found, f"the logs of every life are in {folder}", sep="\n", flush=True)
    else:
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each number of replicas (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicas", default="1,2", help="numbers of replicas, one after the other (default 1,2)")
    parser.add_argument("--client", default=CLIENT, help="kafka-python or confluent-kafka")
    parser.add_argument(
        "--stream", choices=("merged", "key"), default="merged", help="with windows about two entities, or the key only"
    )
    parser.add_argument("--out", type=Path, help="JSON file; rounds that it has are not run again")
    parser.add_argument("--changes", type=int, default=0, help="change the replicas so many times instead")
    parser.add_argument("--minutes", type=float, default=0.0, help="change the replicas for so long instead")
    asked = parser.parse_args()
    if asked.changes or asked.minutes:
        sys.exit(1 if soaked(asked) else 0)
    done: list[dict[str, Any]] = json.loads(asked.out.read_text())["rounds"] if asked.out and asked.out.exists() else []
    failed = []
    for run in rounds_of(
        asked.kills, [int(n) for n in asked.replicas.split(",")], asked.seed, asked.client, asked.stream
    ):
        same = ("kills", "replicas", "seed", "order_wait_ms", "client", "stream")
        if any(all(one.get(name, "merged") == getattr(run, name) for name in same) for one in done):
            continue
        folder = Path(tempfile.mkdtemp(prefix="unmask-faults-"))
        broker = start_broker(folder / "kafka")
        try:
            run = Round(**{**run.__dict__, "bootstrap": broker.bootstrap})
            outcome = run_round(run, folder)
        finally:
            broker.stop()
        done.append(as_json(run, outcome))
        found = wrong(run, outcome)
        failed += found
        print(json.dumps(done[-1]), *found, sep="\n", flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(summary(done) | {"rounds": done}, indent=1) + "\n")
        if found:
            print(f"the logs of every life are in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    print(json.dumps(summary(done), indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
