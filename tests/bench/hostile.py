"""All hostile kinds through a broker of its own: `python -m tests.bench.hostile --help`."""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from flows.local.kafka_server import start_broker
from tests.pipelines.kafka.adapters import ADAPTERS
from tests.pipelines.live.hostile import DAMAGES, KINDS, Battery


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.hostile",
        description=f"Send {len(KINDS)} kinds of hostile records and {2 * len(DAMAGES)} damages on disk, "
        "each between good neighbours, through a broker; print what became of each, and exit 1 if anything "
        "is not as it must be. Takes about 3 minutes.",
    )
    parser.add_argument("--kinds", default="", help="only those whose name holds this text")
    parser.add_argument("--no-damage", action="store_true", help="leave away what needs the broker to be restarted")
    parser.add_argument("--client", default="kafka-python", choices=ADAPTERS)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        own = start_broker(Path(folder) / "kafka")
        if own.kind != "kafka":
            print("this needs an Apache Kafka of its own: see `unmask kafka start --help`")
            return 2
        try:
            battery = Battery(own.bootstrap, Path(folder), adapter=ADAPTERS[asked.client])
            try:
                for kind in KINDS:
                    if asked.kinds in kind.name:
                        battery.run(kind)
                if not asked.no_damage:
                    own = battery.run_damaged(own)
                wrong = battery.check(Path(folder) / "lake")
            finally:
                battery.close()
        finally:
            own.stop()
    print(f"\n{'kind':<62}{'seconds':>8}  what became of it")
    for outcome in battery.outcomes:
        print(f"{outcome.kind.name:<62}{outcome.seconds:>8.2f}  {'; '.join(outcome.wrong) or 'as it must be'}")
    n_wrong = sum(bool(outcome.wrong) for outcome in battery.outcomes)
    print("\n".join(wrong))
    print(f"{len(battery.outcomes)} kinds, {n_wrong} not as they must be, {time.monotonic() - begun:.0f} s")
    return int(bool(n_wrong or wrong))


if __name__ == "__main__":
    sys.exit(main())
