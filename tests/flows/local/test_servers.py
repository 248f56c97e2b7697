import json
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows.local import processes
from flows.local.processes import ServerError
from flows.local.servers import find_servers, start_servers, stop_servers
from tests.patience import HANG_S


def test_mlflow_and_prefect_answer_are_found_again_and_end_soon(secrets: set[str], tmp_path: Path):
    servers = start_servers(tmp_path, log=lambda line: None)
    try:
        assert find_servers(tmp_path) == servers
        assert start_servers(tmp_path, log=lambda line: None) == servers
        with urllib.request.urlopen(f"{servers.prefect_api}/admin/version") as answer:
            assert json.load(answer).startswith("3.")
        family = [
            member
            for server in (servers.mlflow, servers.prefect)
            for member in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True))
        ]
        assert not any("hunter2" in member.environ().values() for member in family)
    finally:
        began = time.monotonic()
        servers.stop()
    assert time.monotonic() - began < HANG_S
    assert not [member for member in family if member.is_running()]
    assert find_servers(tmp_path) is None


def test_a_server_left_alone_is_still_stopped(tmp_path: Path):
    left = processes.launch("mlflow", ["sleep", "60"], folder=tmp_path, address="127.0.0.1:1")
    assert find_servers(tmp_path) is None
    assert stop_servers(tmp_path) == ["mlflow"]
    assert not left.is_running
    assert stop_servers(tmp_path) == []


def test_a_server_that_ends_at_once_says_so_with_the_end_of_its_log(tmp_path: Path):
    process = processes.launch("shell", ["sh", "-c", "echo no such database; exit 3"], folder=tmp_path, address="")
    with pytest.raises(ServerError, match=r"shell ended instead of starting.*\n.*no such database"):
        process.wait_until_up(lambda: False, silence_s=HANG_S)


def test_a_server_that_is_silent_for_too_long_is_stopped(tmp_path: Path):
    process = processes.launch("sleeper", ["sleep", "60"], folder=tmp_path, address="")
    with pytest.raises(ServerError, match=r"sleeper is not up and printed nothing for 0 s"):
        process.wait_until_up(lambda: False, silence_s=0.2)
    assert not process.is_running


def test_a_server_that_goes_on_printing_is_waited_for(tmp_path: Path):
    command = ["sh", "-c", "for i in 1 2 3 4 5 6; do echo migration $i; sleep 0.5; done; echo ready; sleep 60"]
    process = processes.launch("slow", command, folder=tmp_path, address="")
    process.wait_until_up(lambda: "ready" in process.printed(), silence_s=2.0)
    process.stop()


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path: Path):
    command = ["sh", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"]
    process = processes.launch("stubborn", command, folder=tmp_path, address="")
    process.wait_until_up(lambda: "ready" in process.printed(), silence_s=HANG_S)
    process.stop(patience_s=0.3)
    assert not process.is_running
    assert processes.find("stubborn", tmp_path) is None


def test_a_port_is_taken_again_unless_somebody_has_it(tmp_path: Path):
    port = processes.choose_port("server", tmp_path)
    assert processes.choose_port("server", tmp_path) == port
