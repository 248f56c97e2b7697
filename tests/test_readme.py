"""README's blocks hold: its stream file parses, its commands exist, its tree is the tree."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipelines.stream import parse

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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_exists_with_its_options(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words) <= set(targets)
        return
    path = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    path = path if path[0] in ("kafka", "ui") else path[:1]
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output


def test_the_tree_in_the_readme_names_every_source_file_and_no_other() -> None:
    tree = README.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    named = {f"{folder}{name}" for folder, name in _entries(tree)}
    packages = ("pipelines", "models", "flows")
    there = {f"{p}/{f.name}" for p in packages for f in (ROOT / p).glob("*.py") if f.name != "__init__.py"}
    assert {name for name in named if name.startswith(packages) and name.endswith(".py")} == there


def _entries(tree: str) -> list[tuple[str, str]]:
    """(folder, file) of each line; a folder's line ends its first word with a slash, its files are indented below."""
    folder, entries = "", []
    for line in tree.splitlines():
        word = line.split()[0] if line.split() else ""
        if not line.startswith(" "):
            folder = word if word.endswith("/") else ""
        elif word:
            entries.append((folder, word))
    return entries
