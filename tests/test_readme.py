"""README's blocks hold: its stream file parses, its commands exist, its tree is the tree."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import fields
from typer.testing import CliRunner

from flows.cli.root import app
from pipelines.contracts.contract import Event, EventContract, Label, LabelContract
from pipelines.contracts.messages import Alert, Score, decode
from pipelines.contracts.stream_file import parse
from tests.readme_tree import BEGIN, END, tree

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for language, block in BLOCKS
        if not language
        for line in block.splitlines()
        if line.startswith(("unmask ", "make "))
    }
)


def test_the_stream_file_in_the_readme_is_a_stream_file() -> None:
    blocks = [block for language, block in BLOCKS if language == "toml"]
    assert blocks
    for block in blocks:
        assert parse(block).features


def test_the_messages_in_the_readme_are_of_its_stream() -> None:
    stream = parse(next(block for language, block in BLOCKS if language == "toml"))
    event, label, alert = (block.encode() for language, block in BLOCKS if language == "json")
    known = EventContract(stream).decode(event, b"ann", 2**53)
    reported = LabelContract(stream).decode(label, b"ann")
    assert isinstance(known, Event)
    assert isinstance(reported, Label)
    assert (known.event_id, known.time_ms) == (reported.event_id, reported.time_ms)
    full = msgspec.to_builtins(decode(alert, Alert))
    assert full == msgspec.json.decode(alert)
    assert full["event_id"] == known.event_id
    always = [field.name for field in fields(Score) if field.required]
    assert list(full)[: len(always)] == always


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_exists_with_its_options(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words) <= set(targets)
        return
    path = [word for word in words[:2] if re.fullmatch(r"[a-z-]+", word)]
    path = path if path[0] in ("kafka", "ui", "topics", "refused") else path[:1]
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output


def test_the_tree_in_the_readme_is_the_tree() -> None:
    assert README.partition(BEGIN)[2].partition(END)[0] == tree(), "run `python -m tests.readme_tree`"
