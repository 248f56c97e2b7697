"""The lines of everything in a TOML text, held against what `tomllib` reads there."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.toml_lines import lines_of

ROOT = Path(__file__).parents[3]


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


@pytest.mark.parametrize(
    "file",
    ["pyproject.toml", *(f"flows/streams/{name}.toml" for name in ("payments", "handbook", "sparkov"))],
)
def test_everything_that_is_read_has_a_line(file: str) -> None:
    text = (ROOT / file).read_text()
    assert set(lines_of(text)) == set(paths(tomllib.loads(text)))


def test_each_form_that_toml_has_is_followed() -> None:
    text = '''\
a.b = 1 # [not.a.table]
"quoted key" = { x = "}", y.z = [1, [2]] }
long = """
[no] = "x" \\"""
"""
'li.teral' = \'\'\'
k = 1\'\'\'
when = 1979-05-27 07:32:00
[[group]]
n = 1.5
[group.sub]
k = [  # a comment, with ]
  "one",

  { two = 2 },
]
[[group]]
n = -inf
[[group.deep]]
[[group.deep]]
z = true'''
    lines = lines_of(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    found = {
        ("a", "b"): 1, ("quoted key", "y", "z", 1, 0): 2, ("long",): 3, ("li.teral",): 6, ("when",): 8,
        ("group", 0): 9, ("group", 0, "n"): 10, ("group", 0, "sub"): 11, ("group", 0, "sub", "k", 0): 13,
        ("group", 0, "sub", "k", 1, "two"): 15, ("group", 1): 17, ("group", 1, "n"): 18,
        ("group", 1, "deep", 1, "z"): 21,
    }  # fmt: skip
    assert {path: lines[path] for path in found} == found
