"""A scorer that meets a limit of the system: a full file system, and too little memory."""

import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet
from tests.patience import wait_until
from tests.pipelines.kafka.adapters import CLIENT
from tests.pipelines.live.rig import Rig

MB = 1 << 20


def send_new_cards(rig: Rig, n: int) -> None:
    """Events of cards that were not seen before."""
    rig.n_cards = rig.n_sent + n
    rig.send(n)


def all_scored_once(rig: Rig) -> bool:
    return sorted(score["event_id"] for score in rig.scores()) == sorted(f"e{n}" for n in range(rig.n_sent))


def test_a_full_file_system_costs_snapshots_and_no_score(kafka: str, tmp_path: Path) -> None:
    rig, snapshots = Rig(kafka, tmp_path), tmp_path / "snapshots"
    snapshots.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {snapshots}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this system does not let us mount a file system of our own")
    within = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    fleet = Fleet(kafka, rig.stream, tmp_path, order_wait_ms=50, client=CLIENT, within=within)
    try:
        life = fleet.start("0")
        for _ in range(3):
            send_new_cards(rig, 2_000)
            rig.wait_until_out()
        wait_until(lambda: "a snapshot was not written" in life.log.read_text(), alive=lambda: life.is_alive)
        assert "No space left on device" in life.log.read_text()
        seen = Path(f"/proc/{life.process.pid}/root{snapshots}")
        wait_until(lambda: not list(seen.glob("*.part")))
        send_new_cards(rig, 100)
        rig.wait_until_out()
        life.end()
    finally:
        fleet.kill_all()
    assert all_scored_once(rig)


def test_a_scorer_that_runs_out_of_memory_ends_and_the_next_one_goes_on(kafka: str, tmp_path: Path) -> None:
    rig = Rig(kafka, tmp_path)
    fleet = Fleet(kafka, rig.stream, tmp_path, order_wait_ms=50, client=CLIENT)
    try:
        for _ in range(3):  # where it lacks memory first is left to chance
            life, before = fleet.start("0"), rig.n_sent
            send_new_cards(rig, 100)
            rig.wait_until_out()
            used = int(Path(f"/proc/{life.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(life.process.pid, resource.RLIMIT_AS, (used + 4 * MB, used + 4 * MB))
            while life.is_alive:
                send_new_cards(rig, 5_000)
                assert rig.n_sent < before + 300_000, life.log.read_text()
            print(f"ended with {life.process.returncode} after {rig.n_sent - before} events")
            assert life.process.returncode not in (0, -signal.SIGKILL), life.log.read_text()
        fleet.start("0")
        rig.wait_until_out()
    finally:
        fleet.kill_all()
    assert all_scored_once(rig)
