import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.fit.pretrain import PretrainConfig, field_losses, pretrain
from models.ship.pretrained import load_pretrained, save_pretrained
from tests.models.conftest import stream

CONFIG = PretrainConfig(width=16, max_steps=60, min_steps=60, batch=256, n_checks=3, patience=3)
PROGRAM = """
import sys
from pathlib import Path
import torch
from models.fit import workers
from models.fit.pretrain import pretrain
from models.ship.pretrained import save_pretrained
from tests.models.conftest import stream
from tests.models.fit.test_workers import CONFIG

class Killed(Exception):
    pass

def report(metrics, step):
    print(f"worker {workers.rank()} of {workers.count()}, step {step}", flush=True)
    if step == 40 and sys.argv[2] == "cut":
        raise Killed

torch.set_num_threads(1)
folder = Path(sys.argv[1])
found = pretrain(stream(3000, seed=0)[0], config=CONFIG, seed=5, report=report, checkpoint=folder / "checkpoint")
(folder / str(workers.rank())).mkdir()
save_pretrained(found, folder / str(workers.rank()))
"""

BRIEF = """
import atexit
from glob import glob
import torch
from models.fit import workers
atexit.register(lambda: print("last threads:", *(open(name).read() for name in glob("/proc/self/task/*/comm"))))
workers.join()
torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
assert sorted(workers.of_all(workers.rank())) == list(range(workers.count()))
"""


def launch(folder: Path, how: str, *, program: str = PROGRAM, n: int = 2) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command += [str(folder / "program.py"), str(folder), how]
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_two_processes_train_one_network_which_is_as_good_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    cut = launch(tmp_path / "cut", "cut")
    assert cut.returncode != 0
    resumed, whole = launch(tmp_path / "cut", "whole"), launch(tmp_path / "whole", "whole")
    for one in (resumed, whole):
        assert one.returncode == 0, one.stderr
        assert "worker 1" not in one.stdout, "only the first worker reports"
    assert "step 20" in whole.stdout
    assert "step 20" not in resumed.stdout
    found = [load_pretrained(tmp_path / run / rank) for run in ("cut", "whole") for rank in ("0", "1")]
    for other in found[1:]:
        for network in ("expectation", "student"):
            for name, tensor in getattr(found[0], network).state_dict().items():
                torch.testing.assert_close(tensor, getattr(other, network).state_dict()[name], rtol=0, atol=0)
    table, _ = stream(3000, seed=0)
    alone = pretrain(table, config=CONFIG, seed=5)
    cells = alone.rules.coding.cells(table)
    losses = [field_losses(one.expectation, cells, trim=0.02).sum() for one in (alone, found[0])]
    marginal = field_losses(alone.expectation, cells, trim=0.02, trusted=False).sum()
    assert abs(losses[0] - losses[1]) < 0.15 * (marginal - losses[0])


def test_workers_that_end_at_once_do_not_abort(tmp_path: Path) -> None:
    for _ in range(2):
        ended = launch(tmp_path, "", program=BRIEF, n=4)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("last threads") == 4
        assert "gloo" not in ended.stdout


def test_products_in_bfloat16_train_a_network_that_is_as_good(tmp_path: Path) -> None:
    table, _ = stream(3000, seed=0)
    both = [pretrain(table, config=replace(CONFIG, bf16=bf16), seed=5) for bf16 in (False, True)]
    cells = both[0].rules.coding.cells(table)
    losses = [field_losses(one.expectation, cells, trim=0.02).sum() for one in both]
    marginal = field_losses(both[0].expectation, cells, trim=0.02, trusted=False).sum()
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 0.05 * (marginal - losses[0])
    save_pretrained(both[1], tmp_path)
    assert load_pretrained(tmp_path).config.bf16 is True
    assert np.isfinite(both[1].score(table)).all()
