"""The scorer as a service: its status file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.serve.status import StatusFile
from tests.patience import HANG_S
from tests.pipelines.live.rig import Rig, running


def test_a_status_file_that_cannot_be_written_costs_no_score(
    kafka: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(kafka, tmp_path)
    (tmp_path / "state").write_bytes(b"a file where the folder should be")
    status = StatusFile(tmp_path / "state" / "scorer.json")
    rig.send(20)
    with running(rig.scorer()) as run:
        for _ in range(3):
            status.write(run.scorer)
        rig.wait_until_out()
        assert status.n_failed == 3
        assert sum("the status file was not written" in record.message for record in caplog.records) == 1
        (tmp_path / "state").unlink()
        status.write(run.scorer)
    told = json.loads((tmp_path / "state" / "scorer.json").read_text())
    assert (told["n_status_failed"], told["health"], told["n_snapshots_failed"]) == (3, "ok", 0)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
from flows.serve.status import StatusFile
from tests.pipelines.live.rig import Rig, running
folder = Path(sys.argv[2])
rig = Rig(sys.argv[1], folder)
status = StatusFile(folder / "scorer.json")
rig.send(20)
with running(rig.scorer()) as run:
    rig.wait_until_out()
    status.write(run.scorer)
assert status.n_failed == 1, status.n_failed
assert run.scorer.counters.n_snapshots_failed > 0
assert not list((folder / "snapshots").iterdir()), list((folder / "snapshots").iterdir())
assert len(rig.scores()) == 20
"""


def test_a_full_disk_costs_no_score_and_leaves_no_half_of_a_file(kafka: str, tmp_path: Path) -> None:
    # A limit on the size of files fails a write as a full disk does.
    command = [sys.executable, "-c", FULL_DISK, kafka, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
