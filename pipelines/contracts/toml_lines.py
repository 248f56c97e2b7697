"""Line numbers of the keys, tables and list items in a TOML text; `tomllib` does not report them."""

import re
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<skipped> \#[^\n]* | [ \t\r]+ )
  | (?P<text> \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\])*" | '[^'\n]*' )
  | (?P<mark> [\[\]{},=.\n] )
  | (?P<bare> [^\s\[\]{},=.\#"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def lines_of(text: str) -> dict[Path, int]:
    """The line number (1-based) of everything in a TOML document that `tomllib` accepts.

    Returns:
        Line number by path; a path consists of keys and list indices, e.g. `("features", 0, "stats", 1)`.

    Example:
        >>> lines_of('[a]\\nb = [\\n  1,\\n  { c = 2 },\\n]')
        {('a',): 1, ('a', 'b'): 2, ('a', 'b', 0): 3, ('a', 'b', 1): 4, ('a', 'b', 1, 'c'): 4}
    """
    return _Scanner(text).scan()


class _Scanner:
    """Reads statement by statement: a header, or a key with its value."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._lines: dict[Path, int] = {}
        self._n_tables: dict[Path, int] = {}  # of each array of tables

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._next < len(self._tokens):
            if self._peek() == "\n":
                self._next += 1
            elif self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _peek(self) -> str:
        return self._tokens[self._next].text if self._next < len(self._tokens) else ""

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _header(self) -> Path:
        line, is_array = self._take().line, self._peek() == "["
        self._next += is_array
        keys = self._key(until="]")
        self._next += 1 + is_array
        path: Path = ()
        for depth, key in enumerate(keys, start=1):
            path = (*path, key)
            self._note(path, line)
            if is_array and depth == len(keys):
                self._n_tables[path] = self._n_tables.get(path, 0) + 1
            if path in self._n_tables:
                path = (*path, self._n_tables[path] - 1)
                self._note(path, line)
        return path

    def _pair(self, table: Path) -> None:
        line = self._tokens[self._next].line
        path = table
        for key in self._key(until="="):
            path = (*path, key)
            self._note(path, line)
        self._next += 1
        self._value(path)

    def _key(self, *, until: str) -> list[str]:
        keys = []
        while self._peek() != until:
            token = self._take()
            if token.kind == "text":
                keys.append(tomllib.loads(f"key = {token.text}")["key"])
            elif token.text != ".":
                keys.append(token.text)
        return keys

    def _value(self, path: Path) -> None:
        opening = self._take().text
        if opening == "[":
            place = 0
            while self._skip_to_item("]"):
                self._note((*path, place), self._tokens[self._next].line)
                self._value((*path, place))
                place += 1
        elif opening == "{":
            while self._skip_to_item("}"):
                self._pair(path)
        else:
            while self._peek() not in ("", "\n", ",", "]", "}"):  # a number with a dot, a date with a space
                self._next += 1

    def _skip_to_item(self, closing: str) -> bool:
        """Whether another item follows before the closing bracket; the bracket is consumed."""
        while self._peek() in ("\n", ","):
            self._next += 1
        if self._peek() == closing:
            self._next += 1
            return False
        return True

    def _note(self, path: Path, line: int) -> None:
        self._lines.setdefault(path, line)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "skipped":
            yield _Token(str(found.lastgroup), found[0], line)
        line += found[0].count("\n")
