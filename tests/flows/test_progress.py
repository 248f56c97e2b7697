"""Off a terminal long work prints a line by time, whether it reports or not, and only the innermost work does."""

import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from flows import progress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    return lambda: capsys.readouterr().err.splitlines()


def test_work_that_reports_nothing_shows_that_it_goes_on(lines: Callable[[], list[str]]) -> None:
    with progress.shown("audit"):
        time.sleep(0.3)
    said = lines()
    assert said
    assert all(re.fullmatch(r"  audit: still working after \d+ s", line) for line in said)


def test_a_report_is_shown_by_time_and_not_by_its_share(lines: Callable[[], list[str]]) -> None:
    with progress.shown("history") as report:
        for i in range(10_000):
            report(i / 1e6, f"{i:,} of 1,000,000 events")
        assert len(lines()) < 100
        report(0.45, "450,000 of 1,000,000 events")
        time.sleep(0.3)
        assert re.fullmatch(r"  history: 45% done after \d+ s \(450,000 of 1,000,000 events\)", lines()[-1])


def test_work_after_the_last_report_is_not_called_done(lines: Callable[[], list[str]]) -> None:
    with progress.shown("finetune") as report:
        report(1.0, "network 2 of 2")
        time.sleep(0.3)
    assert re.fullmatch(r"  finetune: finishing, after \d+ s", lines()[-1])


def test_inner_work_takes_the_place_of_the_outer_until_it_ends(lines: Callable[[], list[str]]) -> None:
    with progress.shown("report"):
        with pytest.raises(ZeroDivisionError), progress.shown("backtest"):
            time.sleep(0.3)
            assert {line.split(":")[0] for line in lines()} == {"  backtest"}
            raise ZeroDivisionError
        lines()
        time.sleep(0.3)
        assert {line.split(":")[0] for line in lines()} == {"  report"}
    time.sleep(0.2)
    lines()
    time.sleep(0.2)
    assert lines() == []


def test_progress_outside_of_a_flow_does_not_import_prefect() -> None:
    # The demo shows progress before its Prefect server runs; an early import would fix the settings without it.
    script = "import sys\nfrom flows import progress\nwith progress.shown('x') as report: report(0.5, '')\n"
    script += "assert 'prefect' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
