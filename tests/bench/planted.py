"""Planted bad models, forced into service under load: is each returned, and after how many events?

    python -m tests.bench.planted [--planted 20] [--per-s 300] [--seed 7] [--folder DIR] [--out FILE]

`unmask score` in a process of its own, on a broker of its own, with models trained on the simulated payments: bad ones
of four kinds (labels flipped, constant, leaking, stale), forced one after the other with `use-model` or a forced
promotion, while events are played. Then good ones: they must stay until their trial is over. Then `unmask rollback`,
from the start of the command to the first score of the former model. Models are kept in the folder and used again.

Exit code 1 if a bad model stays, or a good one is returned.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from flows.demo.live import read_status, scorer
from flows.local.kafka_server import start_broker
from flows.serve.orders import Operator
from flows.settings import Settings, registry_name
from models.ship.artifact import save
from pipelines.contracts.messages import Progress, decode
from pipelines.contracts.stream import Stream
from pipelines.contracts.stream_file import load
from pipelines.kafka import topics
from pipelines.live.control import order_of
from pipelines.live.moves import give
from pipelines.live.trial import ENOUGH
from pipelines.play.producer import Replayer, create_stream_topics
from tests.bench.planted_models import World, stream_text
from tests.patience import wait_until

N_PARTITIONS, DAYS, WARM = 2, 120, 2_000
STEPS = 150  # of pretraining
GOOD = ("other encoder", "a tenth of the labels", "usual", "label-free", "usual")  # each after the one before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", type=int, default=20, help="bad models")
    parser.add_argument("--per-s", type=float, default=300.0, help="events per second")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated stream and of all models")
    parser.add_argument("--folder", type=Path, help="where trained models are kept; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = World.simulated(asked.seed, days=DAYS, max_steps=STEPS)
        models = trained(world, asked.folder or folder / "models", asked.planted)
        broker = start_broker(folder / "kafka")
        os.environ |= {"UNMASK_HOME": str(folder / "home"), "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            found = measured(world, folder, models, asked.per_s)
        finally:
            broker.stop()
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(found["bad_that_stayed"] or found["good_that_were_returned"]))


def trained(world: World, folder: Path, n_planted: int) -> dict[str, Path]:
    """The folders of the models by name: the good ones, then `<kind> <number>` for the bad ones."""
    made = {name: make for name, make in world.good().items() if name in GOOD}
    kinds = list(world.bad().items())
    for number in range(n_planted):
        kind, make = kinds[number % len(kinds)]
        seed = number // len(kinds) + 1
        made[f"{kind} {seed}"] = lambda make=make, seed=seed: make(seed)  # type: ignore[misc]
    found = {}
    for name, train in made.items():
        found[name] = folder / f"{world.seed}-{name.replace(' ', '-')}"
        if not (found[name] / "manifest.json").exists():
            began = time.monotonic()
            save(train(), found[name], lineage={"name": name})
            print(f"{name}: trained in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def measured(world: World, folder: Path, models: dict[str, Path], per_s: float) -> dict[str, Any]:
    """Force each bad model, then let good ones follow each other, then roll back."""
    name = f"planted-{time.time_ns()}"
    file = folder / "stream.toml"
    file.write_text(stream_text(name))
    stream, settings = load(file), Settings()
    digests = {one: _put(settings, path) for one, path in models.items()}
    usual = digests["usual"]
    pointer = settings.model_cache / f"{registry_name(stream)}.champion.json"
    pointer.write_text(json.dumps({"version": 1, "digest": usual}))
    connection = settings.connection()
    create_stream_topics(connection, stream, n_partitions=N_PARTITIONS, append_time=False)
    replayer = Replayer(connection, stream, n_partitions=N_PARTITIONS)
    assert stream.labels is not None
    live_ms = int(world.frame["time"].dt.epoch("ms")[world.live_from])
    delay_ms = stream.labels.maturity_ms
    replayer.play(world.frame, label_delay_ms=delay_ms, until_ms=live_ms)
    ann = Operator(settings, stream, by="ann")

    def status() -> dict[str, Any]:
        return read_status(stream)

    def force(digest: str, number: int) -> None:
        if number % 2:
            give(connection, stream, lambda _: order_of("promote", digest, why="planted", by="ann", forced=True))
        else:
            ann.use(digest, why="planted")

    bad: list[dict[str, Any]] = []
    good: list[dict[str, Any]] = []
    with scorer(file, stream, folder), _playing(replayer, world, delay_ms, live_ms, per_s):
        wait_until(lambda: status()["scored"] >= WARM, seen=lambda: status()["scored"])
        for number, (one, digest) in enumerate((n, d) for n, d in digests.items() if n not in GOOD):
            before, began = status()["scored"], time.monotonic()
            force(digest, number)
            wait_until(lambda d=digest: status()["model"] == d)  # type: ignore[misc]
            wait_until(
                lambda d=digest: d in status()["models_refused"] or status()["trial"] is None,  # type: ignore[misc]
                seen=lambda: status()["scored"],
            )
            told = status()
            row = {"model": one, "returned": digest in told["models_refused"], "s": round(time.monotonic() - began, 1)}
            row |= {"events": told["scored"] - before, "why": told["models_refused"].get(digest, "")}
            bad.append(row)
            print(row, file=sys.stderr, flush=True)
            if not row["returned"]:
                ann.roll_back(why="it stayed")
            wait_until(lambda: status()["model"] == usual)
        for one in GOOD:
            ann.use(digests[one], why="good")
            wait_until(lambda d=digests[one]: status()["model"] == d)  # type: ignore[misc]
            wait_until(lambda: status()["trial"] is None, seen=lambda: status()["scored"])
            told = status()
            good.append({"model": one, "returned": told["models_refused"].get(digests[one], "")})
            print(good[-1], file=sys.stderr, flush=True)
        times = [_rollback_s(file, stream) for _ in range(3)]
    return {
        "events_per_s": per_s,
        "compared_in_a_trial": ENOUGH,
        "bad": bad,
        "bad_that_stayed": [row["model"] for row in bad if not row["returned"]],
        "events_until_return": sorted(row["events"] for row in bad),
        "seconds_until_return": sorted(row["s"] for row in bad),
        "good": good,
        "good_that_were_returned": [row["model"] for row in good if row["returned"]],
        "rollback_s": times,
    }


def _put(settings: Settings, folder: Path) -> str:
    """Copy a model into the cache; its digest."""
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    shutil.copytree(folder, settings.model_cache / digest, dirs_exist_ok=True)
    return digest


@contextmanager
def _playing(replayer: Replayer, world: World, delay_ms: int, live_ms: int, per_s: float) -> Iterator[None]:
    """Play the live part at a steady rate in the background, from then on."""
    stop = threading.Event()

    class Stopped(Exception):
        pass

    def check(*_: object) -> None:
        if stop.is_set():
            raise Stopped

    def play() -> None:
        with suppress(Stopped):
            replayer.play(world.frame, label_delay_ms=delay_ms, from_ms=live_ms, rate=per_s, progress=check)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _rollback_s(file: Path, stream: Stream) -> float:
    """Seconds from the start of `unmask rollback` to the first commit of a score of the former model."""
    connection, used, began_s = Settings().connection(), read_status(stream)["model"], time.time()
    command = [sys.executable, "-m", "flows.cli", "rollback", "--stream", str(file), "--why", "bench"]
    subprocess.run(command, check=True, capture_output=True)
    wait_until(lambda: read_status(stream)["model"] != used)
    former, first = read_status(stream)["model"], list[int]()

    def is_out() -> bool:
        spans = topics.bounds(connection, [stream.topic("progress")])
        begins = topics.offsets_at(connection, spans, round(began_s * 1000))
        since = {p: (begins[p], end) for p, (_, end) in spans.items()}
        records = (record for batch in topics.read_between(connection, since) for record in batch)
        first[:] = [r.timestamp_ms for r in records if decode(r.value, Progress).model == former]
        return bool(first)

    wait_until(is_out)
    return round(min(first) / 1000 - began_s, 2)


if __name__ == "__main__":
    sys.exit(main())
