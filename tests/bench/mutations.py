"""Plants faults in a copy of the code and demands that the tests named for each catch it.

python -m tests.bench.mutations            all of them, about a quarter of an hour on 2 cores
python -m tests.bench.mutations --only constant-in-per-day
python -m tests.bench.mutations --check    only whether each still applies; `make test` does this too

Exit code 1 if a planted fault survives, 2 if the tests fail without one or a fault does not apply.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PARTS = ("pipelines", "models", "flows", "tests", "docker", "pyproject.toml", "README.md", "Makefile")


class Mutation(NamedTuple):
    """`old` stands exactly once in `file`; `tests` are pytest's arguments: a file, and perhaps "-k" and a word."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "snapshot-on-the-error-exit",
        "pipelines/live/scorer.py",
        "self._stop(snapshot=ended_well)",
        "self._stop(snapshot=True)",
        ("tests/pipelines/live/test_scorer.py", "-k", "whose_step_raises"),
    ),
    Mutation(
        "snapshot-of-half-a-step",
        "pipelines/features/state.py",
        "if self._steps_begun:",
        "if False:",
        ("tests/pipelines/features/test_state.py",),
    ),
    Mutation(
        "unlabelled-counts-as-legitimate",
        "pipelines/features/reports.py",
        "(is_known or not both)",
        "True",
        ("tests/pipelines/lake/test_labels.py", "tests/pipelines/features/test_duplicates.py"),
    ),
    Mutation(
        "fenced-lane-reopens-at-once",
        "pipelines/live/lane.py",
        "until = time.monotonic() + CLAIM_S",
        "until = 0.0",
        ("tests/pipelines/live/test_publish.py", "-k", "fenced"),
    ),
    Mutation(
        "alert-groups-forgotten-between-batches",
        "pipelines/live/lane.py",
        "storm.memory if storm else None",
        "None",
        ("tests/pipelines/live/test_replica.py",),
    ),
    Mutation(
        "overflow-lost-at-the-end-of-a-day",
        "pipelines/live/storms.py",
        "min(day.first_ms + MAX_PENDING_MS, (day.day + 1) * DAY_MS)",
        "day.first_ms + MAX_PENDING_MS",
        ("tests/pipelines/live/test_storms.py",),
    ),
    Mutation(
        "inverted-back-pressure",
        "pipelines/live/scorer.py",
        "self._ownership.n_bytes > self.setting.max_outbox_bytes",
        "self._ownership.n_bytes < self.setting.max_outbox_bytes",
        ("tests/pipelines/live/test_scorer.py", "-k", "outboxes_stops_the_reading"),
    ),
    Mutation(
        "held-partitions-never-released",
        "pipelines/live/input.py",
        "(self.held & hoards(limit // 2))",
        "self.held",
        ("tests/pipelines/live/test_scorer.py", "-k", "far_ahead"),
    ),
    Mutation(
        "reader-never-releases",
        "pipelines/kafka/kafka_python/reader.py",
        "if wanted == set(self._held):",
        "if wanted <= set(self._held):",
        ("tests/pipelines/kafka/test_adapter.py", "-k", "held"),
    ),
    Mutation(
        "no-check-after-commit",
        "pipelines/kafka/kafka_python/transactions.py",
        'futures):\n            raise BrokerError(f"{self._id}: the transaction was',
        '[]):\n            raise BrokerError(f"{self._id}: the transaction was',
        ("tests/pipelines/kafka/kafka_python/test_transactions.py", "-k", "while_it_is_committed"),
    ),
    Mutation(
        "what-a-dead-owner-left-open-stays",
        "pipelines/kafka/connection.py",
        "if not (left_open := (asked or self)._left_open(positions)):",
        "if (left_open := (asked or self)._left_open(positions)) is not None:",
        ("tests/pipelines/kafka/test_lost_ends.py",),
    ),
    Mutation(
        "gaps-are-not-looked-into",
        "pipelines/kafka/confluent/fetch.py",
        "n = min(n_consecutive(messages, expected), n_small(messages))",
        "n = n_small(messages)",
        ("tests/pipelines/kafka/confluent/test_reader.py", "-k", "every_offset"),
    ),
    Mutation(
        "a-standstill-is-not-noticed",
        "pipelines/kafka/confluent/fetch.py",
        "if self.next.get(position) == offset:",
        "if False:",
        ("tests/pipelines/kafka/confluent/test_reader.py", "-k", "damaged_on_disk"),
    ),
    Mutation(
        "inverted-gate",
        "flows/verdict.py",
        "average.ours >= average.theirs - limits.max_loss",
        "average.ours <= average.theirs - limits.max_loss",
        ("tests/flows/test_verdict.py",),
    ),
    Mutation(
        "inverted-floor",
        "flows/verdict.py",
        "best.ours >= best.theirs - limits.max_loss",
        "best.ours <= best.theirs - limits.max_loss",
        ("tests/flows/test_verdict.py",),
    ),
    Mutation(
        "backtest-without-guards",
        "flows/backtesting/trials.py",
        "if seen[one.digest]:",
        "if False:",
        ("tests/flows/test_training_flows.py", "-k", "refuses_a_champion"),
    ),
    Mutation(
        "rounding-by-batch",
        "models/ship/artifact.py",
        "-n % LANES",
        "0",
        ("tests/models/ship/test_artifact.py", "-k", "same_bits"),
    ),
    Mutation(
        "missing-column-is-column-0",
        "flows/serve/model.py",
        "at.get(name, len(have))",
        "at.get(name, 0)",
        ("tests/flows/serve/test_model.py",),
    ),
    Mutation(
        "label-to-another-partition",
        "flows/serve/labels.py",
        'value, key, event["partition"])',
        "value, key, 0)",
        ("tests/flows/serve/test_labels.py",),
    ),
    Mutation(
        "constant-in-per-day",
        "models/score/budget.py",
        "int(budget.per_day * days)",
        "int(50 * days)",
        ("tests/models/score/test_calibrate.py",),
    ),
    Mutation(
        "misspelt-sasl-option",
        "flows/settings.py",
        '"sasl_plain_username": self.sasl_username',
        '"sasl_plain_usename": self.sasl_username',
        ("tests/flows/test_settings.py",),
    ),
)


def copied(folder: Path) -> Path:
    """A copy of the code that a mutation may change."""
    tree = folder / "tree"
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            tree.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / part)
    return tree


def tests_pass(tree: Path, tests: tuple[str, ...], log: Path) -> bool:
    """Whether the tests pass in a tree; anything but failing tests is an error.

    Raises:
        RuntimeError: pytest could not run them.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "CI": "true", "OMP_NUM_THREADS": "1", "HANG_S": "60"}
    with log.open("wb") as out:
        code = subprocess.run(command, cwd=tree, env=environment, stdout=out, stderr=out, check=False).returncode
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code}; see {log}")
    return code == 0


def why_not(tree: Path, mutation: Mutation) -> str | None:
    """Why a mutation does not apply to a tree, None where it does."""
    path = tree / mutation.file
    if not path.is_file():
        return f"{mutation.name}: {mutation.file} does not exist"
    n_found = path.read_text().count(mutation.old)
    if n_found != 1:
        return f"{mutation.name}: {mutation.file} contains {mutation.old!r} {n_found} times; it must be there once"
    tests, *chosen = mutation.tests
    if not (tree / tests).is_file() or not all(word in (tree / tests).read_text() for word in chosen[1:]):
        return f"{mutation.name}: there is no test {' '.join(mutation.tests)}"
    return None


def planted(tree: Path, mutation: Mutation) -> str:
    """Plant a mutation in a tree; returns the text that was there."""
    path = tree / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", choices=[m.name for m in MUTATIONS], help="this one; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="plant nothing, say which do not apply")
    asked = parser.parse_args()
    chosen = [m for m in MUTATIONS if not asked.only or m.name in asked.only]
    reasons = [reason for mutation in chosen if (reason := why_not(ROOT, mutation))]
    if reasons:
        print("\n".join(reasons))
        sys.exit(2)
    if asked.check:
        print(f"{len(chosen)} mutations apply")
        return
    folder = Path(tempfile.mkdtemp(prefix="unmask-mutations-"))
    tree = copied(folder)
    for tests in dict.fromkeys(m.tests for m in chosen):
        if not tests_pass(tree, tests, folder / "none.log"):
            print(f"{' '.join(tests)} fails without a mutation; see {folder / 'none.log'}")
            sys.exit(2)
    survivors = []
    for mutation in chosen:
        began, text = time.monotonic(), planted(tree, mutation)
        survives = tests_pass(tree, mutation.tests, folder / f"{mutation.name}.log")
        (tree / mutation.file).write_text(text)
        survivors += [mutation.name] if survives else []
        print(
            f"{'SURVIVES' if survives else 'caught':9s}{mutation.name:30s}{time.monotonic() - began:6.1f} s", flush=True
        )
    if survivors:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
